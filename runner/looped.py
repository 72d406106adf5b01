"""Decoding whose calls a device makes by itself: the host gives the first, and the tables that the others are made of.

For lines in which every input sees all before it: next-token decoding that runs ahead on drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, Loop, StepBuffers
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.decoding import Drawing, JacobiDecoding
from arforge.runner.line import Line, make_line
from arforge.runner.plan import Plan, Prefixes, column_of, fitting_width
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.visibility import sees_all_before


def line_of(schedule: Schedule) -> Line | None:
    """The line of a schedule that a device can run ahead on drafts of by itself; None of others."""
    if not schedule.jacobi or not has_one_condition(schedule) or not sees_all_before(schedule):
        return None
    return make_line(schedule, column_of(schedule))


def has_one_condition(schedule: Schedule) -> bool:
    """Whether nothing else is known before the first call."""
    return not schedule.kept and schedule.conditions == 1


def loop_widths(plan: Plan) -> tuple[int, int]:
    """Of the first call, before which nothing can be drafted, and of all after it."""
    return fitting_width(1, plan.widths), fitting_width(plan.jacobi, plan.widths)


def looped(
    engine: Engine, plan: Plan, model: ModelFacts, prompts: Sequence[Prompt], prefixes: Prefixes, drawing: Drawing
) -> LoopedDecoding | None:
    """The decoding of a batch whose calls the engine makes by itself; None where the host makes them."""
    line = plan.line if plan.all_before and has_one_condition(plan.schedule) else None
    loop = None if line is None else engine.loop(*loop_widths(plan), len(line))
    if line is None or loop is None:
        return None
    return LoopedDecoding(plan, line, plan.known(model, prompts), prefixes, drawing, loop, model.vocabulary)


class LoopedDecoding(JacobiDecoding):
    """As `JacobiDecoding`, but that a device gets on by several calls between two looks of the host."""

    def __init__(
        self,
        plan: Plan,
        line: Line,
        known: NDArray[np.int64],
        prefixes: Prefixes,
        drawing: Drawing,
        loop: Loop,
        vocabulary: int,
    ) -> None:
        super().__init__(plan, line, known, prefixes, drawing)
        self._widths, self._loop, self._vocabulary = loop_widths(plan), loop, vocabulary
        self._begun = False
        self._fault = np.zeros(len(drawing.random), np.int64)

    @property
    def decided(self) -> NDArray[np.bool_]:
        self._fetch()
        return self._line.deciders < self._at[:, None]

    @property
    def shape(self) -> tuple[int, int] | None:
        if self.done == len(self._plan.steps):
            return None
        return self._widths[self._begun], 0

    @property
    def written(self) -> int:
        return self._slot + int(self._at.max()) + self._widths[1]

    def fill(self, buffers: StepBuffers) -> None:
        if not self._begun:
            super().fill(buffers)
            self._loop.begin(self._tables(buffers))
            self._begun = True

    def run(self, engine: Engine, shape: tuple[int, int]) -> None:
        progress = self._loop.run()
        self._at, self.passes, self._fault = progress.place, progress.passes, progress.fault

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return self._fault[:, None]

    def store(self, buffers: StepBuffers) -> None:
        if self.shape is None:
            self._fetch()

    def _fetch(self) -> None:
        """The tokens so far, drafts among them."""
        self.known[:, : self._plan.schedule.cells] = np.tile(self._loop.tokens(), (self._lanes, 1))

    def _tables(self, buffers: StepBuffers) -> dict[str, NDArray[Any]]:
        """By the names of `loop_contract`, for the images and rows of this batch."""
        line, cells, random = self._line, self._plan.schedule.cells, self._drawing.random
        places, seen = self._prefixes.places, self._prefixes.seen
        rows, inputs = len(self.known), len(line)
        feeders = np.full(cells, inputs)
        feeders[line.sources[line.sources >= 0]] = np.flatnonzero(line.sources >= 0)
        tables: dict[str, NDArray[Any]] = {
            "line_tokens": self.known[0, line.columns],
            "line_positions": line.positions,
            "line_sources": line.sources,
            "line_targets": line.targets,
            "line_reached": np.cumsum([0, *(line.targets >= 0)]),
            "line_guidance": 1 + (self._drawing.guidance[:, None] - 1) * line.guidance,
            "deciders": line.deciders,
            "feeders": feeders,
            "first_tokens": self.known[:, line.columns[0]],
            "first_slot": np.array([self._slot]),
            "moved": np.zeros(rows, np.int64) if places is None else places[:, 0],
            "offsets": np.arange(self._widths[1]),
            "fed": np.array(self._widths),
        }
        tables["seen"] = np.zeros((rows, self._plan.slots), np.bool_)
        if seen is not None:
            tables["seen"][:, self._plan.steps[0].prompt] = seen
        if buffers.noise is None:
            tables["cell_uniforms"] = random.uniforms
        else:
            tables["cell_noise"] = random.noise_of_cells(self._vocabulary)
        return tables
