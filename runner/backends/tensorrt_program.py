"""A TensorRT engine file in device memory, and programs: it at one of its profiles, as one CUDA graph.

A program's graph copies the inputs in, runs the engine and copies the outputs out, so that a run is one launch and one
wait. Tensors that stay on the device, the caches, have a place of their own and are never copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.kernel_cache import KernelCache
from arforge.runner.backends.tensorrt_library import RTX, Library
from arforge.runner.errors import EngineError

ALIGNMENT = 256  # bytes, of what TensorRT is given
NOWHERE: Mapping[str, int] = {}
LONGEST = 64
"""Calls of one CUDA graph at most: of 255 kernels a call, 64 are 16,000 nodes."""


class LoadedEngine:
    """An engine on the GPU with the working memory that its programs share, since only one runs at a time."""

    def __init__(self, path: Path, library: Library, gpu: Gpu, stripped_from: Path | None = None) -> None:
        """Raises EngineError if the library refuses the file. `stripped_from`: the graph of a stripped engine."""
        self.library, self.gpu, self.path = library, gpu, path
        library.recorder.clear()
        self._runtime = library.trt.Runtime(library.recorder)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise EngineError(f"{library.name} cannot load {path}: {library.reason('no reason given')}")
        if stripped_from is not None:
            self._refit(stripped_from)
        count = self.engine.num_optimization_profiles
        sizes = [self.engine.get_device_memory_size_for_profile_v2(index) for index in range(count)]
        self._workspace = (gpu.allocate(max(sizes)), max(sizes))
        self._strategy = library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._kernels = KernelCache(path, gpu) if library.target == RTX else None
        self._configuration = self._configure() if self._kernels else None

    @property
    def names(self) -> list[str]:
        return [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def program(self, profile: int, placed: Mapping[str, int]) -> Program:
        """The engine at that profile. `placed`: addresses of tensors that stay on the device."""
        context = self.engine.create_execution_context(self._configuration or self._strategy)
        if context is None:
            raise EngineError(f"{self.library.name} cannot run {self.path}: {self.library.reason('no reason given')}")
        context.set_device_memory(*self._workspace)
        context.set_optimization_profile_async(profile, self.gpu.stream)
        return Program(self, context, profile, placed)

    def close(self) -> None:
        """Keep the kernels that were compiled meanwhile. The memory goes with the GPU's."""
        if self._kernels is not None:
            self._kernels.save()
        self._configuration = None
        del self.engine, self._runtime

    def _configure(self) -> Any:
        """TensorRT-RTX compiles kernels on the device: at once, so that a captured graph has the final ones."""
        assert self._kernels is not None
        made = self.engine.create_runtime_config()
        made.set_execution_context_allocation_strategy(self._strategy)
        made.dynamic_shapes_kernel_specialization_strategy = (
            self.library.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        cache = made.create_runtime_cache()
        self._kernels.load(cache)
        made.set_runtime_cache(cache)
        return made

    def _refit(self, graph: Path) -> None:
        trt, recorder = self.library.trt, self.library.recorder
        refitter = trt.Refitter(self.engine, recorder)
        if not (
            trt.OnnxParserRefitter(refitter, recorder).refit_from_file(str(graph)) and refitter.refit_cuda_engine()
        ):
            reason = self.library.reason("no reason given")
            raise EngineError(f"{self.library.name} cannot put the weights of {graph} into {self.path}: {reason}")


class Block:
    """Tensors side by side in device memory, with `arrays` on the host that they are copied from and to."""

    def __init__(self, gpu: Gpu, kinds: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        """`kinds`: shape and type of each. The arrays are zero, device memory is as it was."""
        self._gpu = gpu
        sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in kinds.items()}
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._address, self._host = gpu.allocate(end), gpu.pinned(end)
        self._host[:] = 0
        self.addresses = {name: self._address + offset for name, offset in offsets.items()}
        self._bytes = {name: self._host[offsets[name] : offsets[name] + size] for name, size in sizes.items()}
        self.arrays = {name: self._bytes[name].view(dtype).reshape(shape) for name, (shape, dtype) in kinds.items()}

    def upload(self) -> None:
        """Queue one copy of all of them to the device."""
        self._gpu.upload(self._address, self._host)

    def upload_some(self, names: Iterable[str]) -> None:
        for name in names:
            self._gpu.upload(self.addresses[name], self._bytes[name])

    def download(self) -> None:
        """Queue one copy of all of them to the host."""
        self._gpu.download(self._host, self._address)


class Launch:
    """Work that is queued call by call the first time, and is one CUDA graph from then on."""

    def __init__(self, gpu: Gpu, queue: Callable[[], None], capturable: Callable[[], bool]) -> None:
        self._gpu, self._queue, self._capturable = gpu, queue, capturable
        self._graph: Any = None
        self.captured: bool | None = None  # None before the first run

    def start(self) -> None:
        """Do the work, and wait for it the first time only. Raises EngineError if the engine or the GPU fails."""
        if self._graph is None:
            self.run()
        else:
            self._gpu.launch(self._graph)

    def run(self) -> None:
        """Do the work and wait for it. Raises EngineError if the engine or the GPU fails."""
        if self._graph is not None:
            self._gpu.launch(self._graph)
            self._gpu.synchronize()
            return
        self._queue()  # the first time as it is, since the library may compile and allocate
        self._gpu.synchronize()
        if self.captured is None:
            self.captured = self._capturable()
            if self.captured:
                with self._gpu.capturing() as graphs:
                    self._queue()
                self._graph = graphs[0]

    def close(self) -> None:
        """Free the graph, once nothing of it runs."""
        if self._graph is not None:
            self._gpu.synchronize()
            self._gpu.discard(self._graph)
            self._graph = None


class Program:
    """`inputs` and `outputs` are host arrays, one for each tensor that does not stay on the device."""

    def __init__(self, loaded: LoadedEngine, context: Any, profile: int, placed: Mapping[str, int]) -> None:
        self._loaded, self._context = loaded, context
        engine, trt = loaded.engine, loaded.library.trt
        moving: dict[Any, list[str]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for name in loaded.names:
            mode = engine.get_tensor_mode(name)
            if mode == trt.TensorIOMode.INPUT and -1 in tuple(engine.get_tensor_shape(name)):
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, profile)[1])
            if name in placed:
                context.set_tensor_address(name, placed[name])
            else:
                moving[mode].append(name)
        self.input = self._place(moving[trt.TensorIOMode.INPUT])
        self.output = self._place(moving[trt.TensorIOMode.OUTPUT])
        self.inputs, self.outputs = self.input.arrays, self.output.arrays
        self._addresses = {**placed, **self.input.addresses, **self.output.addresses}
        self._launch = Launch(loaded.gpu, self._queue, self.capturable)

    @property
    def captured(self) -> bool | None:
        """Whether a run is a CUDA graph; None before the first."""
        return self._launch.captured

    def run(self) -> None:
        """Execute on `inputs` and fill `outputs`. Raises EngineError if the engine or the GPU fails."""
        self._launch.run()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def capturable(self) -> bool:
        """Only TensorRT-RTX tells whether it can be captured; TensorRT can, since the graphs have no branches."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._loaded.gpu.stream))

    def execute(self, elsewhere: Mapping[str, int] = NOWHERE) -> None:
        """Queue the engine alone, on what lies on the device. Raises EngineError if it fails.

        `elsewhere`: addresses that take the place of tensors' own this time.
        """
        for name, address in elsewhere.items():
            self._context.set_tensor_address(name, address)
        done = self._context.execute_async_v3(self._loaded.gpu.stream)
        for name in elsewhere:
            self._context.set_tensor_address(name, self._addresses[name])
        if not done:
            library = self._loaded.library
            raise EngineError(f"{library.name} failed in {self._loaded.path}: {library.reason('no reason given')}")

    def _queue(self) -> None:
        self.input.upload()
        self.execute()
        self.output.download()

    def _place(self, names: list[str]) -> Block:
        engine, trt = self._loaded.engine, self._loaded.library.trt
        kinds = {name: (self.shape(name), np.dtype(trt.nptype(engine.get_tensor_dtype(name)))) for name in names}
        block = Block(self._loaded.gpu, kinds)
        for name, address in block.addresses.items():
            self._context.set_tensor_address(name, address)
        return block
