"""A decoder's torch module as an engine: the reference that graphs are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arforge.export.sampler import guide
from arforge.runner.backends.engine import RequestBuffers, StepBuffers, StepMemory
from arforge.runner.bundle import ModelFacts
from arforge.runner.device import available_cores, device_name, streaming_bandwidth
from arforge.runner.plan import Plan
from arforge.runner.schedules.jacobi_windows import MeasuredWindow
from arforge.runner.step_graph import cache_names


class ModuleEngine:
    """Gives guided logits and the most likely tokens, as `step-logits` does at temperature 0, in float32 on the CPU."""

    widths: tuple[int, ...] | None = None
    prefill_widths: tuple[int, ...] | None = None
    largest_batch: int | None = None
    one_mask = False
    own_mask = False
    exact_width: int | None = None
    measured: tuple[MeasuredWindow, ...] = ()

    def __init__(self, module: Any, model: ModelFacts) -> None:
        """`module`: of the model's family, with its weights (`load_module`)."""
        self._module, self._memory = module, StepMemory(model, "step-logits")
        self._names = cache_names(model.caches)
        self._caches: list[Any] = []

    @property
    def device(self) -> str:
        return device_name()

    def bandwidth(self) -> float:
        return streaming_bandwidth(available_cores())

    @property
    def cache_type(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def settings(self) -> RequestBuffers:
        return self._memory.settings

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        self._memory.prepare(images, rows, slots, condition)
        self._caches = self._module.empty_caches(rows, slots)

    def has_low_caches(self, lockstep: int) -> bool:
        return False

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        return self._memory.buffers(width, queries)

    @torch.no_grad()
    def run(self, width: int, queries: int = 0) -> None:
        buffers = self.buffers(width, queries)
        given = [buffers.tokens, buffers.positions, buffers.mask, buffers.write_index]
        if buffers.query_positions is not None:
            given[3:3] = [buffers.query_positions, buffers.mask[:, :, -1:]]
        condition = self.settings.condition
        prompt = {} if condition is None else {"condition": torch.from_numpy(condition)}
        logits, self._caches = self._module(*map(torch.from_numpy, given), self._caches, **prompt)
        guided = guide(logits, len(buffers.guidance), torch.from_numpy(buffers.guidance)).numpy()
        assert buffers.logits is not None
        buffers.logits[:] = guided
        buffers.next_tokens[:] = guided.argmax(-1)

    def loop(self, first: int, later: int, inputs: int) -> None:
        """The host makes the calls."""

    def accept(self, plan: Plan) -> None:
        """It takes steps of any shape."""

    def table_loop(self, plan: Plan) -> None:
        """As `loop`."""

    def cache(self, name: str) -> NDArray[Any]:
        held: NDArray[Any] = self._place(name).numpy()
        return held

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        self._place(name)[row, :, first : first + values.shape[1]] = torch.from_numpy(values)

    def close(self) -> None:
        self._caches = []
        self._memory.clear()

    def _place(self, name: str) -> torch.Tensor:
        flat = [cache for pair in self._caches for cache in pair]
        return dict(zip(self._names, flat, strict=True))[name]
