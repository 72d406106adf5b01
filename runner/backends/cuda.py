"""One CUDA GPU: its memory, one stream of work on it, and CUDA graphs of that work."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import EngineError

INSTALL = "pip install cuda-bindings, of the major version of CUDA that the driver is for"
COPIED = 1 << 28  # bytes of a copy that measures bandwidth: beyond any cache
ROUNDS = 5


class Gpu:
    """The first GPU. All work goes to one stream, in order; addresses are device pointers as plain numbers."""

    def __init__(self) -> None:
        """Raises EngineError if cuda-bindings, a driver or a GPU is missing."""
        self._runtime = load_runtime()
        self._memory: dict[int, int] = {}  # address -> bytes
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        if self._call("cudaGetDeviceCount") == 0:
            raise EngineError("there is no CUDA GPU here: use --target onnxruntime")
        facts = self._call("cudaGetDeviceProperties", 0)
        self.name: str = facts.name.split(b"\0")[0].decode()
        self.compute_capability = f"{facts.major}.{facts.minor}"
        self.stream = int(self._call("cudaStreamCreate"))

    def allocate(self, size: int) -> int:
        """Device memory. Raises EngineError if there is not enough."""
        address = int(self._call("cudaMalloc", max(size, 1)))
        self._memory[address] = size
        return address

    def free(self, address: int) -> None:
        del self._memory[address]
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Host memory that copies run from and to beside other work; it lasts until `close`."""
        address = int(self._call("cudaMallocHost", max(size, 1)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """Queue a copy to the device from contiguous host memory, which must not change until `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, self.stream)

    def download(self, target: NDArray[Any], address: int) -> None:
        """Queue a copy from the device to contiguous host memory, which is filled after `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, self.stream)

    def upload_rows(self, address: int, pitch: int, source: NDArray[Any]) -> None:
        """As `upload`; each item of `source` begins `pitch` bytes after the one before it."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        width = source.nbytes // len(source)
        place = (source.ctypes.data, width, width, len(source))
        self._call("cudaMemcpy2DAsync", address, pitch, *place, kind, self.stream)

    def download_rows(self, target: NDArray[Any], address: int, pitch: int) -> None:
        """As `download`, of what `upload_rows` puts there."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        width = target.nbytes // len(target)
        place = (target.ctypes.data, width, address, pitch, width, len(target))
        self._call("cudaMemcpy2DAsync", *place, kind, self.stream)

    def copy_box(
        self, extent: tuple[int, int, int], target: tuple[int, int, int], source: tuple[int, int, int]
    ) -> None:
        """Queue a copy on the device. `extent`: bytes of a line, lines of a plane, planes.

        `target`, `source`: the address, bytes from one line to the next, lines from one plane to the next.
        """
        wanted = self._runtime.cudaMemcpy3DParms()
        wanted.dstPtr, wanted.srcPtr = (
            self._runtime.make_cudaPitchedPtr(address, line, line, lines) for address, line, lines in (target, source)
        )
        wanted.extent = self._runtime.make_cudaExtent(*extent)
        wanted.kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", wanted, self.stream)

    def clear(self, address: int, pitch: int, width: int, rows: int) -> None:
        """Queue zeros into the first `width` bytes of each of `rows` rows that lie `pitch` bytes apart."""
        self._call("cudaMemset2DAsync", address, pitch, 0, width, rows, self.stream)

    @contextmanager
    def capturing(self) -> Iterator[list[Any]]:
        """Work queued inside is not done but becomes a graph for `launch`, the one item of the list given."""
        graphs: list[Any] = []
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            yield graphs
        except BaseException:
            self._runtime.cudaStreamEndCapture(self.stream)  # whatever it says: the first failure counts
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        graphs.append(executable)

    def launch(self, graph: Any) -> None:
        self._call("cudaGraphLaunch", graph, self.stream)

    def discard(self, graph: Any) -> None:
        """Free a graph that is not launched any more."""
        self._graphs.remove(graph)
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self) -> None:
        """Wait until all queued work is done. Raises EngineError if some of it failed."""
        self._call("cudaStreamSynchronize", self.stream)

    def bandwidth(self) -> float:
        """Bytes per second that the GPU reads and writes in a copy: the best of a few."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        source, target = self.allocate(COPIED), self.allocate(COPIED)
        before, after = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        best = 0.0
        for _ in range(ROUNDS):
            self._call("cudaEventRecord", before, self.stream)
            self._call("cudaMemcpyAsync", target, source, COPIED, kind, self.stream)
            self._call("cudaEventRecord", after, self.stream)
            self.synchronize()
            best = max(best, 2 * COPIED / (self._call("cudaEventElapsedTime", before, after) / 1000))
        for event in (before, after):
            self._call("cudaEventDestroy", event)
        for address in (source, target):
            self.free(address)
        return best

    @property
    def allocated(self) -> int:
        """Bytes of device memory held."""
        return sum(self._memory.values())

    def close(self) -> None:
        for graph in self._graphs:
            self._call("cudaGraphExecDestroy", graph)
        for address in self._memory:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        self._graphs, self._memory, self._pinned = [], {}, []
        self._call("cudaStreamDestroy", self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of the CUDA runtime: its one result. Raises EngineError if it fails."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error == self._runtime.cudaError_t.cudaSuccess:
            return results[0] if results else None
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            wanted = f"{arguments[0] / 2**30:.2f} GiB"
            raise EngineError(f"no memory on the GPU for {wanted}: use a smaller batch")
        if error in (
            self._runtime.cudaError_t.cudaErrorInsufficientDriver,
            self._runtime.cudaError_t.cudaErrorNoDevice,
        ):
            raise EngineError(
                "there is no CUDA GPU here, or no driver for this cuda-bindings: use --target onnxruntime"
            )
        text = self._runtime.cudaGetErrorString(error)[1].decode()
        raise EngineError(f"CUDA failed in {name}: {text}")


def load_runtime() -> Any:
    """Raises EngineError if cuda-bindings is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise EngineError(f"cuda-bindings is not installed: {INSTALL}") from None
    return runtime


def gpu_compute_capability() -> str | None:
    """That of the first GPU, such as "8.6", asked of its driver; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    for value, attribute in ((major, 75), (minor, 76)):
        found = found and driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) == 0
    return f"{major.value}.{minor.value}" if found else None
