"""A TensorRT engine file in device memory, and programs: it at one of its profiles, as one CUDA graph.

A program's graph copies the inputs in, runs the engine and copies the outputs out, so that a run is one launch and one
wait. Tensors that stay on the device, the caches, have a place of their own and are never copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.kernel_cache import KernelCache
from arforge.runner.backends.tensorrt_library import RTX, Library
from arforge.runner.errors import EngineError

ALIGNMENT = 256  # bytes, of what TensorRT is given


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


class Program:
    """`inputs` and `outputs` are host arrays, one for each tensor that does not stay on the device."""

    def __init__(self, loaded: LoadedEngine, context: Any, profile: int, placed: Mapping[str, int]) -> None:
        self._loaded, self._context, self._gpu = loaded, context, loaded.gpu
        self._graph: Any = None
        self.captured: bool | None = None  # None before the first run
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
        self._input, self.inputs = self._place(moving[trt.TensorIOMode.INPUT])
        self._output, self.outputs = self._place(moving[trt.TensorIOMode.OUTPUT])

    def run(self) -> None:
        """Execute on `inputs` and fill `outputs`. Raises EngineError if the engine or the GPU fails."""
        if self._graph is not None:
            self._gpu.launch(self._graph)
            self._gpu.synchronize()
            return
        self._queue()  # the first time as it is, since the library may compile and allocate
        self._gpu.synchronize()
        if self.captured is None:
            self._capture()

    def _capture(self) -> None:
        """Only TensorRT-RTX tells whether it can be captured; TensorRT can, since the graphs have no branches."""
        ask = getattr(self._context, "is_stream_capturable", None)
        self.captured = ask is None or bool(ask(self._gpu.stream))
        if self.captured:
            with self._gpu.capturing() as graphs:
                self._queue()
            self._graph = graphs[0]

    def _queue(self) -> None:
        self._gpu.upload(*self._input)
        if not self._context.execute_async_v3(self._gpu.stream):
            library = self._loaded.library
            raise EngineError(f"{library.name} failed in {self._loaded.path}: {library.reason('no reason given')}")
        address, host = self._output
        self._gpu.download(host, address)

    def _place(self, names: list[str]) -> tuple[tuple[int, NDArray[np.uint8]], dict[str, NDArray[Any]]]:
        """One block on the device and one on the host for those tensors: the blocks, and the tensors on the host."""
        engine, trt = self._loaded.engine, self._loaded.library.trt
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in names}
        types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        offsets, end = {}, 0
        for name in names:
            offsets[name] = end
            end += -(-int(np.prod(shapes[name])) * types[name].itemsize // ALIGNMENT) * ALIGNMENT
        address, host = self._gpu.allocate(end), self._gpu.pinned(end)
        arrays = {}
        for name in names:
            self._context.set_tensor_address(name, address + offsets[name])
            size = int(np.prod(shapes[name])) * types[name].itemsize
            arrays[name] = host[offsets[name] : offsets[name] + size].view(types[name]).reshape(shapes[name])
            arrays[name][...] = 0
        return (address, host), arrays
