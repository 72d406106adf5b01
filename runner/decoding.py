"""The steps of a batch of images, one after another, each made from what the ones before it sampled.

A table of steps is followed as it stands (`TableDecoding`). A line of inputs, next-token, can also be run ahead on
drafts (`JacobiDecoding`): a random number belongs to an image's seed and a cell, so deciding a cell again is no other
draw, and a draft that comes out again, behind inputs that are all right, is what next-token decoding samples there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import StepBuffers
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.plan import Line, Plan, PlannedStep, Prefixes, fitting_width
from arforge.runner.randomness import Randomness


@dataclass(frozen=True)
class Drawing:
    """What the cells of a batch are drawn with."""

    random: Randomness  # of the images, and the cells of the plan's grid
    guidance: NDArray[np.float64]  # (images)


class Decoding(Protocol):
    """One batch as it proceeds. Ask for `shape`, fill the buffers of it, run, store; until `shape` is None."""

    known: NDArray[np.int64]
    """(rows, columns): the tokens of all cells, as far as they are decided, conditions and special tokens."""

    @property
    def passes(self) -> NDArray[np.int64]:
        """(images) engine calls until an image was done."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Width and queries of the next call; None where all is decided."""

    @property
    def done(self) -> int:
        """How many of the plan's steps every image has behind it."""

    def fill(self, buffers: StepBuffers) -> None: ...

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        """The sampled tokens that count, (images, n), -1 among them where logits were non-finite."""

    @property
    def written(self) -> int:
        """Cache slots that the next call, or the one that has just run, reaches to."""

    def store(self, buffers: StepBuffers) -> None: ...


def decoding_of(
    plan: Plan,
    model: ModelFacts,
    prompts: Sequence[Prompt],
    prefixes: Prefixes,
    drawing: Drawing,
    tokens: NDArray[np.int64] | None = None,
) -> Decoding:
    """The decoding of a batch, a prompt a row; `tokens` (images, cells): those of kept cells count."""
    known = plan.known(model, prompts, tokens)
    if plan.line is not None:
        return JacobiDecoding(plan, plan.line, known, prefixes, drawing)
    return TableDecoding(plan, known, prefixes, drawing)


class TableDecoding:
    """All images are at the same step."""

    def __init__(self, plan: Plan, known: NDArray[np.int64], prefixes: Prefixes, drawing: Drawing) -> None:
        self.known, self.done = known, 0
        self._steps, self._prefixes, self._drawing = plan.steps, prefixes, drawing

    @property
    def shape(self) -> tuple[int, int] | None:
        return None if self.done == len(self._steps) else (self._step.width, self._step.queries)

    @property
    def passes(self) -> NDArray[np.int64]:
        return np.full(len(self._drawing.random), self.done)

    @property
    def written(self) -> int:
        return self._step.write_index + self._step.width

    def fill(self, buffers: StepBuffers) -> None:
        step = self._step
        step.fill(buffers, self.known, self._prefixes)
        self._drawing.random.fill(buffers, step.target_cells, step.target_rows)
        buffers.guidance[:] = step.scale(self._drawing.guidance)[:, None]

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return buffers.next_tokens[:, self._step.target_rows]

    def store(self, buffers: StepBuffers) -> None:
        self._step.store(buffers, self.known)
        self.done += 1

    @property
    def _step(self) -> PlannedStep:
        return self._steps[self.done]


class JacobiDecoding:
    """Each image is where its drafts have brought it; its rows have a write index, positions and masks of their own.

    A call feeds the inputs of the line from the first that is not yet in the cache: that one is right, the others are
    as right as the drafts of their cells. What it samples becomes the cells' tokens; those behind a wrong input are
    drafts again. Inputs that were right stay in the cache, the next call writes over the others. A cell that enters
    the window begins with the token of the cell above, in row 0 with token 0.
    """

    def __init__(self, plan: Plan, line: Line, known: NDArray[np.int64], prefixes: Prefixes, drawing: Drawing) -> None:
        images = len(drawing.random)
        self.known, self.passes = known, np.zeros(images, np.int64)
        self._plan, self._line, self._prefixes, self._drawing = plan, line, prefixes, drawing
        self._slot = plan.steps[0].write_index  # of the line's first input
        self._at = np.zeros(images, np.int64)  # inputs in the cache that are right
        self._drafted = np.zeros(images, np.int64)  # cells that are decided, or have a draft
        self._lanes = len(known) // images  # rows of an image
        self._window = np.zeros((images, 0), np.int64)  # of the next call: places in the line

    @property
    def done(self) -> int:
        return int(self._line.steps[self._at.min()])

    @property
    def shape(self) -> tuple[int, int] | None:
        if self.done == len(self._plan.steps):
            return None
        # nothing can be drafted before the condition has been seen
        return fitting_width(self._plan.jacobi if self._at.min() else 1, self._plan.widths), 0

    @property
    def written(self) -> int:
        return self._slot + int(self._at.max()) + self._window.shape[1]

    def fill(self, buffers: StepBuffers) -> None:
        line, width = self._line, buffers.tokens.shape[1]
        places = np.minimum(self._at[:, None], len(line) - 1) + np.arange(width)
        self._window = np.minimum(places, len(line) - 1)  # done images, and what is left over, repeat the last input
        self._draft(line.sources[self._window])
        window = np.tile(self._window, (self._lanes, 1))
        buffers.tokens[:] = np.take_along_axis(self.known, line.columns[window], axis=1)
        positions = line.positions[window]
        buffers.positions[:] = positions if self._prefixes.places is None else positions + self._prefixes.places
        first = np.tile(self._slot + places[:, 0], self._lanes)
        buffers.write_index[:] = first
        slots = np.arange(buffers.mask.shape[-1])
        buffers.mask[:, 0] = slots <= (first[:, None] + np.arange(width))[..., None]
        if self._prefixes.seen is not None:
            buffers.mask[:, 0, :, self._plan.steps[0].prompt] = self._prefixes.seen[:, None]
        cells = line.targets[self._window]
        self._drawing.random.fill(buffers, np.maximum(cells, 0))
        buffers.guidance[:] = 1 + (self._drawing.guidance[:, None] - 1) * line.guidance[self._window]

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return buffers.next_tokens

    def store(self, buffers: StepBuffers) -> None:
        line, window, drawn = self._line, self._window, buffers.next_tokens
        fed = buffers.tokens[: len(window)]
        sources = line.sources[window]
        output = np.where(sources < 0, -1, line.deciders[sources] - window[:, :1])  # that decides what an input was fed
        right = (output < 0) | (np.take_along_axis(drawn, np.maximum(output, 0), axis=1) == fed)
        right[:, 0] = True
        running = self._at < len(line)
        kept = np.minimum(np.cumprod(right, axis=1).sum(axis=1), len(line) - self._at)
        cells = line.targets[window]
        first = (self._at[:, None] + np.arange(window.shape[1]) < len(line)) & (cells >= 0)  # no repeated last input
        images, places = np.nonzero(first)
        for lane in range(self._lanes):
            self.known[images + lane * len(window), cells[images, places]] = drawn[images, places]
        self._drafted = np.maximum(self._drafted, np.where(first, cells + 1, 0).max(axis=1))
        self.passes += running
        self._at += kept

    def _draft(self, cells: NDArray[np.int64]) -> None:
        """First drafts of the cells, (images, width), that have none; -1 stands for no cell."""
        images = np.arange(len(cells))
        for column in cells.T:
            new = images[column >= self._drafted]
            if not new.size:
                continue
            cell = column[new]
            above = cell - self._plan.schedule.grid[1]
            for lane in range(self._lanes):
                row = new + lane * len(images)
                self.known[row, cell] = np.where(above >= 0, self.known[row, np.maximum(above, 0)], 0)
            self._drafted[new] = cell + 1
