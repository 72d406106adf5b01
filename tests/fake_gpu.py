"""A GPU and a TensorRT that are not there: the interface of both, with ONNX Runtime doing the arithmetic.

Work is done when it is waited for, not when it is queued, and copies go by address; so what the backend forgets to
copy, to bind or to wait for is missing here as it would be on a device.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from wide_bf16 import widen_bf16

from arforge.engines.lowered_session import session_of
from arforge.engines.tensorrt_view import close_views
from arforge.runner import Runner
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import between_of, lowered_of
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.bundle import Bundle
from arforge.runner.step_graph import row_sizes

NUMPY = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16.value,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}
Work = Callable[[], None]
RTX = "tensorrt-rtx"


class FakeGpu:
    """The interface of `runner.cuda.Gpu` on host memory."""

    name, compute_capability, stream = "Fake GPU", "8.6", 7

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.queued: list[Work] = []
        self.captured: list[Work] | None = None
        self.launches = self.waits = self.sent = self.fetched = 0  # bytes of copies that were done, to it and back
        self.allocations = self.graphs = 0  # graphs: that are held
        self.copied: list[int] = []  # bytes of every copy that was queued outside of graphs
        self.capturable, self.closed = True, False

    def allocate(self, size: int) -> int:
        self.allocations += 1
        array = np.full(size + 256, 0xFF, np.uint8)  # as floats: NaN
        address = -(-array.ctypes.data // 256) * 256
        self.memory[address] = array
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, size: int) -> NDArray[np.uint8]:
        return np.full(size, 0xFF, np.uint8)

    def upload(self, address: int, source: NDArray[Any]) -> None:
        assert source.flags.c_contiguous
        self.copied.append(source.nbytes)
        self.do(lambda: self.send(address, source.ctypes.data, source.nbytes))

    def download(self, target: NDArray[Any], address: int) -> None:
        assert target.flags.c_contiguous
        self.copied.append(target.nbytes)
        self.do(lambda: self.fetch(target.ctypes.data, address, target.nbytes))

    def send(self, target: int, source: int, size: int) -> None:
        self.sent += size
        ctypes.memmove(target, source, size)

    def fetch(self, target: int, source: int, size: int) -> None:
        self.fetched += size
        ctypes.memmove(target, source, size)

    @property
    def moved(self) -> int:
        return self.sent + self.fetched

    def upload_rows(self, address: int, pitch: int, source: NDArray[Any]) -> None:
        for index, row in enumerate(source):
            self.upload(address + index * pitch, row)

    def download_rows(self, target: NDArray[Any], address: int, pitch: int) -> None:
        for index, row in enumerate(target):
            self.download(row, address + index * pitch)

    def copy_box(
        self, extent: tuple[int, int, int], target: tuple[int, int, int], source: tuple[int, int, int]
    ) -> None:
        width, height, depth = extent
        self.copied.append(width * height * depth)
        assert all(line >= width and lines >= height for _, line, lines in (target, source))
        places = [
            [a + (p * lines + n) * line for p in range(depth) for n in range(height)]
            for a, line, lines in (target, source)
        ]
        self.do(lambda: [ctypes.memmove(to, of, width) for to, of in zip(*places, strict=True)])

    def clear(self, address: int, pitch: int, width: int, rows: int) -> None:
        self.do(lambda: [ctypes.memset(address + row * pitch, 0, width) for row in range(rows)])

    def do(self, work: Callable[[], object]) -> None:
        (self.queued if self.captured is None else self.captured).append(work)  # type: ignore[arg-type]

    @contextmanager
    def capturing(self) -> Iterator[list[Any]]:
        assert self.capturable
        graphs: list[Any] = []
        self.captured = []
        try:
            yield graphs
        finally:
            work, self.captured = self.captured, None
        graphs.append(work)
        self.graphs += 1

    def launch(self, graph: list[Work]) -> None:
        self.launches += 1
        self.queued.extend(graph)

    def discard(self, graph: list[Work]) -> None:
        self.graphs -= 1

    def synchronize(self) -> None:
        self.waits += 1
        queued, self.queued = self.queued, []
        for work in queued:
            work()

    def bandwidth(self) -> float:
        return 1e9

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.memory.clear()


Opened = tuple[Runner, TensorRTEngine, FakeGpu]
"""What the fixture `open_fake` gives."""


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class FakeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        known = content.startswith(b"kernels")
        self.content = content if known else b""
        return known

    def serialize(self) -> bytes:
        return self.content or b"kernels"


def closed(model: ir.Model) -> dict[str, list[int]]:
    """Let each view be made of its updated cache, in place. Returns their shapes as inputs, -1 where it is free."""
    views = [value for value in model.graph.inputs if str(value.name).startswith("view_")]
    if views:
        close_views(model, len(views) // 2)
    return {str(view.name): [dim if isinstance(dim, int) else -1 for dim in view.shape or ()] for view in views}


class FakeContext:
    """Runs the lowered graph on the addresses that it was given."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.workspace = (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        assert address in self.engine.gpu.memory
        self.workspace = (address, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.engine.gpu.stream
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert tuple(shape) == self.engine.shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.shape(name, self.profile)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.types
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.gpu.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.failure:
            self.engine.recorder.errors.append(self.engine.failure)
            return False
        assert self.workspace[1] >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert set(self.addresses) == set(self.engine.types)
        binding = self.engine.session.io_binding()
        for view, cache in self.engine.views.items():
            assert self.addresses[view] == self.addresses[cache]  # the session has what is there after the update
        for name, kind in self.engine.types.items():
            if name in self.engine.views:
                continue
            bind = binding.bind_input if name in self.engine.inputs else binding.bind_output
            bind(name, "cpu", 0, kind, self.engine.shape(name, self.profile), self.addresses[name])
        self.engine.gpu.do(lambda: self.engine.session.run_with_iobinding(binding))
        return True


class FakeEngine:
    def __init__(self, graph: Path, profiles: list[dict[str, tuple[int, ...]]], gpu: FakeGpu, recorder: Any) -> None:
        model = ir.load(graph)
        views = closed(model)
        self.views = {name: name.removeprefix("view_") for name in views}
        if any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.inputs):
            widen_bf16(model)
        self.session = session_of(model, graph.parent)
        self.gpu, self.recorder, self.profiles, self.failure = gpu, recorder, profiles, ""
        self.inputs = {value.name for value in self.session.get_inputs()} | self.views.keys()
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.types = {value.name: NUMPY[value.type] for value in values}
        self.free = {value.name: [dim if isinstance(dim, int) else -1 for dim in value.shape] for value in values}
        for view, cache in self.views.items():
            self.types[view] = self.types[cache]
        self.free |= views
        self.num_io_tensors, self.num_optimization_profiles = len(self.types), len(profiles)

    def shape(self, name: str, profile: int) -> tuple[int, ...]:
        return self.profiles[profile][name]

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.free[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [self.shape(name, profile)] * 3

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.removeprefix("new_") if name.startswith("new_") else None

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 + profile

    def create_runtime_config(self) -> Any:
        made = SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)
        made.create_runtime_cache, made.set_runtime_cache = FakeCache, lambda cache: None
        return made

    def create_execution_context(self, configuration: Any) -> FakeContext:
        assert configuration is not None
        return FakeContext(self)


class FakeTensorRT:
    """A module whose engines are the lowered graphs of bundles, told apart by the hash of the engine file."""

    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.known: dict[str, tuple[Path, list[dict[str, tuple[int, ...]]]]] = {}
        self.engines: list[FakeEngine] = []

    @staticmethod
    def nptype(kind: Any) -> Any:
        return kind

    def add(self, bundle: Bundle, identity: dict[str, Any]) -> None:
        """Let it know a bundle's engines."""
        model, profiles = bundle.model, identity["profiles"]
        steps, images = [], []
        step = lowered_of(bundle, identity)
        for profile in profiles:
            dimensions = {**profile, **row_sizes(model, profile["images"]), "slots": identity["slots"]}
            steps.append({tensor.name: tensor.sizes(dimensions) for tensor in (*step.inputs, *step.outputs)})
        self.known[digest(bundle.path(identity["engine"]).read_bytes())] = (bundle.path(identity["lowered"]), steps)
        for kind, contract in between_of(bundle, identity).items():
            sizes = [{**one, "rows": 2 * one["images"]} for one in identity[f"{kind}_profiles"]]
            if kind == "table":
                sizes = [{**one, "drawn": one["images"] * identity["table_sizes"]["most"]} for one in sizes]
            passes = [{t.name: t.sizes(one) for t in (*contract.inputs, *contract.outputs)} for one in sizes]
            content = bundle.path(identity[kind]).read_bytes()
            self.known[digest(content)] = (bundle.path(identity[f"{kind}_graph"]), passes)
        if identity["decoder"]:
            assert bundle.image_tokenizer is not None
            for count in sorted({profile["images"] for profile in profiles}):
                pixels = (count, *bundle.image_tokenizer.image_size, 3)
                images.append({"tokens": (count, *model.grid), "images": pixels})
            graph = bundle.graph("decoder", "fp32")
            self.known[digest(bundle.path(identity["decoder"]).read_bytes())] = (graph, images)

    def Runtime(self, recorder: Any) -> Any:  # noqa: N802
        def deserialize(content: Any) -> FakeEngine | None:
            found = self.known.get(digest(bytes(content)))
            if found is None:
                recorder.errors.append("the file is not an engine")
                return None
            self.engines.append(FakeEngine(*found, self.gpu, recorder))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeRecorder:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def clear(self) -> None:
        self.errors.clear()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fake_library(gpu: FakeGpu, version: str, target: str = "tensorrt-rtx") -> Library:
    return Library(target, FakeTensorRT(gpu), version, FakeRecorder())
