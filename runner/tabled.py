"""Decoding by a table whose calls a device makes by itself: the table lies there, and what is drawn stays there.

For schedules whose steps are all settled beforehand: next-token decoding, ZipAR, PAR, ARPG, with kept cells or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, StepBuffers, TableLoop
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.decoding import Drawing, TableDecoding
from arforge.runner.plan import Plan, Prefixes
from arforge.runner.schedules.schedule import Schedule


def is_table(schedule: Schedule) -> bool:
    """Whether its steps do not depend on what is sampled."""
    return not schedule.jacobi and schedule.rows is None


def tabled(
    engine: Engine,
    plan: Plan,
    model: ModelFacts,
    prompts: Sequence[Prompt],
    prefixes: Prefixes,
    drawing: Drawing,
    tokens: NDArray[np.int64] | None = None,
) -> TabledDecoding | None:
    """The decoding of a batch whose calls the engine makes by itself; None where the host makes them."""
    loop = engine.table_loop(plan) if is_table(plan.schedule) else None
    if loop is None:
        return None
    return TabledDecoding(plan, plan.known(model, prompts, tokens), prefixes, drawing, loop, model.vocabulary)


class TabledDecoding(TableDecoding):
    """As `TableDecoding`, but that a device gets on by several calls between two looks of the host."""

    def __init__(
        self,
        plan: Plan,
        known: NDArray[np.int64],
        prefixes: Prefixes,
        drawing: Drawing,
        loop: TableLoop,
        vocabulary: int,
    ) -> None:
        super().__init__(plan, known, prefixes, drawing)
        self._plan, self._loop, self._vocabulary = plan, loop, vocabulary
        self._reached = 0
        self._fault = np.zeros((len(drawing.random), 1), np.int64)

    @property
    def decided(self) -> NDArray[np.bool_]:
        self._fetch()
        return super().decided

    def fill(self, buffers: StepBuffers) -> None:
        if not self.done:
            self._loop.begin(self._of_batch(noise=buffers.noise is not None))

    def run(self, engine: Engine, shape: tuple[int, int]) -> None:
        progress = self._loop.run()
        self._reached = progress.done
        faulty = progress.fault != 0
        if faulty.any():
            self.done = int(progress.fault_call[faulty].min())  # the step that the error names
            self._fault[:, 0] = np.where(progress.fault_call == self.done, progress.fault, 0)

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return self._fault

    def store(self, buffers: StepBuffers) -> None:
        self.done = self._reached
        if self.shape is None:
            self._fetch()

    def _fetch(self) -> None:
        """The tokens so far."""
        found = self._loop.known()
        self.known[:, : self._cells] = found[:, : self._cells]

    def _of_batch(self, *, noise: bool) -> dict[str, NDArray[Any]]:
        """What the calls of this batch differ in, by the names of `table_contract`, for its images and rows."""
        places, seen, random = self._prefixes.places, self._prefixes.seen, self._drawing.random
        rows = len(self.known)
        given: dict[str, NDArray[Any]] = {
            "known": self.known,
            "call_guidance": np.stack([step.scale(self._drawing.guidance) for step in self._steps], axis=1),
            "moved": np.zeros(rows, np.int64) if places is None else places[:, 0],
            "seen": np.zeros((rows, self._plan.slots), np.bool_),
        }
        if seen is not None:
            given["seen"][:, self._steps[0].prompt] = seen
        if noise:
            given["cell_noise"] = random.noise_of_cells(self._vocabulary)
        else:
            given["cell_uniforms"] = random.uniforms
        return given
