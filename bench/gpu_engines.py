"""Peers of the TensorRT backend as engines that the runner can drive: the torch module, and ONNX Runtime's providers.

Both take the place of `arforge build`'s engines in one `Runner`, so that all run the same loop on the same requests.
Caches stay on the device; a CUDA graph is captured for each shape of step where there is a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import write_in_place

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.engine import RequestBuffers, StepBuffers, StepMemory
from arforge.runner.backends.onnxruntime_session import UNWANTED, load_library
from arforge.runner.bundle import Bundle
from arforge.runner.device import device_name, streaming_bandwidth
from arforge.runner.errors import EngineError
from arforge.runner.plan import Plan
from arforge.runner.schedules.jacobi_windows import MeasuredWindow
from arforge.runner.step_graph import cache_names, written_name

TYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.float32}
WARM_UPS = 3  # before a capture, as torch asks


class DeviceEngine(ABC):
    """What both have in common: step memory on the host, caches on a device."""

    widths: tuple[int, ...] | None = None
    prefill_widths: tuple[int, ...] | None = None
    largest_batch: int | None = None
    one_mask = False
    own_mask = False
    exact_width: int | None = None
    measured: tuple[MeasuredWindow, ...] = ()

    def __init__(self, bundle: Bundle, precision: str, device: str) -> None:
        self._bundle, self._precision, self._kind = bundle, precision, device
        self._memory = StepMemory(bundle.model, bundle.sampler.graph)
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}

    @property
    def device(self) -> str:
        if self._kind == "cpu":
            return device_name()
        gpu = Gpu()
        try:
            return f"{gpu.name}, compute capability {gpu.compute_capability}"
        finally:
            gpu.close()

    def loop(self, first: int, later: int, inputs: int) -> None:
        return None  # the host makes the calls

    def accept(self, plan: Plan) -> None:
        return None  # steps of any shape

    def table_loop(self, plan: Plan) -> None:
        return None

    def bandwidth(self) -> float:
        if self._kind == "cpu":
            return streaming_bandwidth(1)
        gpu = Gpu()
        try:
            return gpu.bandwidth()
        finally:
            gpu.close()

    @property
    def cache_type(self) -> np.dtype[Any]:
        return np.dtype(TYPES[self._precision])

    @property
    def settings(self) -> RequestBuffers:
        return self._memory.settings

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        if self._memory.prepare(images, rows, slots, condition):
            self._steps.clear()
            self.allocate(rows, slots)
        if zero_slots:
            self.clear(zero_slots)

    def has_low_caches(self, lockstep: int) -> bool:
        return False

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        buffers = self._memory.buffers(width, queries)
        if (width, queries) not in self._steps:
            self._steps[width, queries] = self.bind(buffers, width, queries)
        return buffers

    def run(self, width: int, queries: int = 0) -> None:
        self._steps[width, queries]()

    def close(self) -> None:
        self._steps.clear()
        self._memory.clear()

    @abstractmethod
    def cache(self, name: str) -> NDArray[Any]:
        """A copy of one cache."""

    @abstractmethod
    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        """Put keys or values, (kv_heads, count, head_size), into slots of a row."""

    @abstractmethod
    def allocate(self, rows: int, slots: int) -> None:
        """Caches of that shape, zero."""

    @abstractmethod
    def clear(self, zero_slots: int) -> None:
        """Make the first slots of the caches zero."""

    @abstractmethod
    def bind(self, buffers: StepBuffers, width: int, queries: int) -> Callable[[], None]:
        """What executes a step from those buffers."""


class TorchEngine(DeviceEngine):
    """The torch module with static caches; compiled or not, in a CUDA graph where there is a GPU."""

    def __init__(self, bundle: Bundle, precision: str, device: str, compiled: bool) -> None:
        import torch

        from arforge.export import layers, sampler
        from arforge.export.families import arpg
        from arforge.export.verify import load_module

        super().__init__(bundle, precision, device)
        self.torch, self.sample = torch, sampler.sample
        layers.write_cache = arpg.write_cache = write_in_place
        sampler.keep_likely = without_filters  # the published one asks the host, which no graph can
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        self.module = load_module(bundle).to(self.dtype).to(device)
        self.forward = torch.compile(self.module, dynamic=False) if compiled else self.module
        self.caches: list[Any] = []

    def allocate(self, rows: int, slots: int) -> None:
        made = self.module.empty_caches(rows, slots)
        self.caches = [(key.to(self._kind, self.dtype), value.to(self._kind, self.dtype)) for key, value in made]

    def cache(self, name: str) -> NDArray[Any]:
        copied: NDArray[Any] = self.place(name).cpu().numpy()
        return copied

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        self.place(name)[row, :, first : first + values.shape[1]] = self.torch.from_numpy(values).to(self._kind)

    def place(self, name: str) -> Any:
        flat = [cache for pair in self.caches for cache in pair]
        return dict(zip(cache_names(len(self.caches)), flat, strict=True))[name]

    def clear(self, zero_slots: int) -> None:
        for pair in self.caches:
            for cache in pair:
                cache[:, :, :zero_slots] = 0

    def bind(self, buffers: StepBuffers, width: int, queries: int) -> Callable[[], None]:
        torch = self.torch
        arrays = {**vars(buffers), **vars(self.settings)}
        host = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
        drawn = host.pop("next_tokens")
        on_device = {name: tensor.to(self._kind) for name, tensor in host.items()}

        def step() -> Any:
            given, along = on_device, torch.arange(width, device=self._kind)
            slots = given["write_index"][0] + along
            asked = (given["query_positions"], given["mask"][:, :, -1:]) if queries else ()
            inputs = (given["tokens"], given["positions"], given["mask"], *asked, slots, self.caches)
            prompt = {"condition": given["condition"].to(self.dtype)} if "condition" in given else {}
            logits, _ = self.forward(*inputs, **prompt)
            settings = (given[name] for name in ("guidance", "temperature", "top_k", "top_p"))
            return self.sample(logits, given["uniforms"], *settings)[0]

        def upload() -> None:
            for name, tensor in host.items():
                on_device[name].copy_(tensor, non_blocking=True)

        if self._kind == "cpu":

            def run() -> None:
                with torch.inference_mode():
                    upload()
                    drawn.copy_(step())

            return run
        graph, result = None, None

        def replay() -> None:
            nonlocal graph, result
            with torch.inference_mode():
                upload()
                if graph is None:
                    graph, result = self.capture(step)
                graph.replay()
                drawn.copy_(result)

        return replay

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Any]:
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
        return graph, result


def without_filters(logits: Any, *_limits: Any) -> Any:
    return logits


class ProviderEngine(DeviceEngine):
    """ONNX Runtime with an execution provider by name; caches bound on its device, CUDA graphs with CUDA's."""

    def __init__(self, bundle: Bundle, precision: str, provider: str, graphs: bool = True) -> None:
        super().__init__(bundle, precision, "cuda" if provider == "CUDA" else "cpu")
        self.runtime = load_library()
        name = f"{provider}ExecutionProvider"
        if name not in self.runtime.get_available_providers():
            found = ", ".join(self.runtime.get_available_providers())
            raise EngineError(f"this onnxruntime has no {name}, but {found}")
        path = bundle.graph("step", precision)
        options = self.runtime.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self.graphs = graphs and provider == "CUDA"
        if self.graphs:  # a node on the CPU would break the capture; refuse it, rather than run slowly
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {"enable_cuda_graph": "1"} if self.graphs else {}
        try:
            self.session = self.runtime.InferenceSession(
                path, options, providers=[(name, settings)], disabled_optimizers=UNWANTED
            )
        except Exception as error:  # the binding's exception classes share no narrower public base
            raise EngineError(f"{name} refuses {path}: {error}") from error
        self.caches: dict[str, Any] = {}
        self.shapes = 0  # bound so far: each has a graph of its own

    def allocate(self, rows: int, slots: int) -> None:
        model = self._bundle.model
        shape = (rows, model.kv_heads, slots, model.head_size)
        make = self.runtime.OrtValue.ortvalue_from_numpy  # which on the CPU keeps the array itself
        names = cache_names(model.caches)
        self.caches = {name: make(np.zeros(shape, self.cache_type), self._kind, 0) for name in names}

    def cache(self, name: str) -> NDArray[Any]:
        copied: NDArray[Any] = self.caches[name].numpy()
        return copied

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        whole = self.cache(name)  # a part of a value cannot be replaced
        whole[row, :, first : first + values.shape[1]] = values
        self.caches[name].update_inplace(whole)

    def clear(self, zero_slots: int) -> None:
        """They start as zeros, and slots up to there are never written."""

    def bind(self, buffers: StepBuffers, width: int, queries: int) -> Callable[[], None]:
        make = self.runtime.OrtValue.ortvalue_from_numpy
        arrays = {name: array for name, array in {**vars(buffers), **vars(self.settings)}.items() if array is not None}
        drawn = arrays.pop("next_tokens")
        values = {name: make(array, self._kind, 0) for name, array in arrays.items()}
        result = make(drawn, self._kind, 0)
        binding = self.session.io_binding()
        for name, value in {**values, **self.caches}.items():
            binding.bind_ortvalue_input(name, value)
            if name in self.caches:
                binding.bind_ortvalue_output(written_name(name), value)
        binding.bind_ortvalue_output("next_tokens", result)
        self.shapes += 1
        options = self.runtime.RunOptions()
        if self.graphs:
            options.add_run_config_entry("gpu_graph_id", str(self.shapes))

        def run() -> None:
            for name, array in arrays.items():
                values[name].update_inplace(array)
            self.session.run_with_iobinding(binding, options)
            drawn[...] = result.numpy()

        return run

    def close(self) -> None:
        super().close()
        self.caches.clear()
        del self.session
