"""The CUDA calls as far as they go without a GPU: every one exists, takes these arguments, and its failure is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arforge.runner import EngineError
from arforge.runner.backends.cuda import Gpu, gpu_compute_capability, load_runtime


@pytest.fixture
def gpu() -> Gpu:
    """One that was not opened, so that its calls reach the runtime."""
    if gpu_compute_capability() is not None:
        pytest.skip("there is a GPU")
    made = Gpu.__new__(Gpu)
    made._runtime, made._memory, made._pinned, made._graphs, made.stream = load_runtime(), {64: 1}, [64], [0], 0
    return made


CALLS = {
    "allocate": lambda gpu: gpu.allocate(16),
    "free": lambda gpu: gpu.free(64),
    "pinned": lambda gpu: gpu.pinned(16),
    "upload": lambda gpu: gpu.upload(64, np.zeros(4)),
    "download": lambda gpu: gpu.download(np.zeros(4), 64),
    "upload_rows": lambda gpu: gpu.upload_rows(64, 16, np.zeros((2, 1))),
    "download_rows": lambda gpu: gpu.download_rows(np.zeros((2, 1)), 64, 16),
    "clear": lambda gpu: gpu.clear(64, 16, 8, 2),
    "capturing": lambda gpu: gpu.capturing().__enter__(),
    "launch": lambda gpu: gpu.launch(0),
    "synchronize": lambda gpu: gpu.synchronize(),
    "bandwidth": lambda gpu: gpu.bandwidth(),
    "close": lambda gpu: gpu.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_reaches_the_runtime_and_says_that_there_is_no_gpu(name: str, gpu: Gpu) -> None:
    with pytest.raises(EngineError, match="there is no CUDA GPU here, or no driver for this cuda-bindings"):
        CALLS[name](gpu)


def test_opening_says_so_too() -> None:
    if gpu_compute_capability() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="there is no CUDA GPU here.*use --target onnxruntime"):
        Gpu()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match="cuda-bindings is not installed: pip install cuda-bindings, of the"):
        Gpu()


class ScriptedRuntime:
    """The real runtime's names and errors, with results that are given."""

    def __init__(self, results: dict[str, tuple[Any, ...]]) -> None:
        real = load_runtime()
        self.cudaError_t, self.cudaMemcpyKind = real.cudaError_t, real.cudaMemcpyKind
        self.cudaStreamCaptureMode, self.cudaGetErrorString = real.cudaStreamCaptureMode, real.cudaGetErrorString
        self.results, self.calls = results, []

    def __getattr__(self, name: str) -> Any:
        assert hasattr(load_runtime(), name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.results.get(name, (self.cudaError_t.cudaSuccess,))

        return call


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> tuple[Gpu, ScriptedRuntime]:
    fine = load_runtime().cudaError_t.cudaSuccess
    facts = SimpleNamespace(name=b"Fake 9000\0\0\0", major=8, minor=9)
    runtime = ScriptedRuntime(
        {
            "cudaGetDeviceCount": (fine, 1),
            "cudaGetDeviceProperties": (fine, facts),
            "cudaStreamCreate": (fine, 5),
            "cudaMalloc": (fine, 4096),
            "cudaStreamEndCapture": (fine, "graph"),
            "cudaGraphInstantiate": (fine, "executable"),
        }
    )
    monkeypatch.setattr("arforge.runner.backends.cuda.load_runtime", lambda: runtime)
    return Gpu(), runtime


def test_facts_and_memory(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    assert (gpu.name, gpu.compute_capability, gpu.stream) == ("Fake 9000", "8.9", 5)
    assert gpu.allocate(100) == 4096
    assert gpu.allocated == 100
    runtime.results["cudaMalloc"] = (runtime.cudaError_t.cudaErrorMemoryAllocation, None)
    with pytest.raises(EngineError, match=r"no memory on the GPU for 3\.00 GiB: use a smaller batch"):
        gpu.allocate(3 << 30)
    gpu.close()
    assert ("cudaFree", 4096) in runtime.calls
    assert ("cudaStreamDestroy", 5) in runtime.calls


def test_rows_are_copied_to_and_from_where_they_lie(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    rows, kinds = np.zeros((3, 2, 5), np.float16), runtime.cudaMemcpyKind
    gpu.upload_rows(4096, 64, rows)
    gpu.download_rows(rows, 4096, 64)
    sent, received = runtime.calls[-2:]
    host = rows.ctypes.data
    assert sent == ("cudaMemcpy2DAsync", 4096, 64, host, 20, 20, 3, kinds.cudaMemcpyHostToDevice, 5)
    assert received == ("cudaMemcpy2DAsync", host, 20, 4096, 64, 20, 3, kinds.cudaMemcpyDeviceToHost, 5)


def test_a_capture_becomes_one_graph_that_is_freed(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    with gpu.capturing() as graphs:
        gpu.upload(4096, np.zeros(4))
    gpu.launch(graphs[0])
    names = [call[0] for call in runtime.calls[3:]]
    assert names == [
        "cudaStreamBeginCapture",
        "cudaMemcpyAsync",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
    ]
    assert runtime.calls[-1] == ("cudaGraphLaunch", "executable", 5)
    gpu.close()
    assert ("cudaGraphExecDestroy", "executable") in runtime.calls


def test_a_graph_that_is_discarded_is_freed_once(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    with gpu.capturing() as graphs:
        gpu.upload(4096, np.zeros(4))
    gpu.discard(graphs[0])
    gpu.close()
    assert runtime.calls.count(("cudaGraphExecDestroy", "executable")) == 1


def test_a_failed_capture_is_ended_and_told(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    with pytest.raises(EngineError, match="no luck"), gpu.capturing():
        raise EngineError("no luck")
    assert runtime.calls[-1][0] == "cudaStreamEndCapture"


def test_other_failures_carry_cudas_words(scripted: tuple[Gpu, ScriptedRuntime]) -> None:
    gpu, runtime = scripted
    runtime.results["cudaStreamSynchronize"] = (runtime.cudaError_t.cudaErrorIllegalAddress,)
    with pytest.raises(EngineError, match="CUDA failed in cudaStreamSynchronize: an illegal memory access"):
        gpu.synchronize()
