"""The steps of a batch of images, one after another, each made from what the ones before it sampled.

A table of steps is followed as it stands (`TableDecoding`), or run ahead on drafts (`JacobiDecoding`): a random number
belongs to an image's seed and a cell, so deciding a cell again is no other draw, and a draft that comes out again,
behind inputs that are all right, is what the table samples there. Or each image has a table of its own, which is made
as its rows start (`AdaptiveDecoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, StepBuffers
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.line import Line
from arforge.runner.plan import Plan, PlannedStep, Prefixes, column_of, fitting_width
from arforge.runner.randomness import Randomness
from arforge.runner.schedules.rows import rows_of
from arforge.runner.schedules.schedule import RowRules, Target
from arforge.runner.schedules.visibility import Visibility


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
    def decided(self) -> NDArray[np.bool_]:
        """(images, cells) whose tokens in `known` are final."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Width and queries of the next call; None where all is decided."""

    @property
    def done(self) -> int:
        """How much of the plan's `length` every image has behind it."""

    def fill(self, buffers: StepBuffers) -> None: ...

    def run(self, engine: Engine, shape: tuple[int, int]) -> None:
        """The call of this shape, whose buffers are filled, or several in a row where a device makes them."""

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
    if plan.schedule.rows is not None:
        return AdaptiveDecoding(plan, plan.schedule.rows, known, prefixes, drawing)
    if plan.line is not None:
        return JacobiDecoding(plan, plan.line, known, prefixes, drawing)
    return TableDecoding(plan, known, prefixes, drawing)


def of_lanes(rows: NDArray[Any], images: int) -> NDArray[Any]:
    """An array of rows as one of (lanes, images, ...), in place: the images' own rows, and the unconditional ones."""
    return rows.reshape(-1, images, *rows.shape[1:])


class HostCalls:
    """The host makes each call."""

    def run(self, engine: Engine, shape: tuple[int, int]) -> None:
        engine.run(*shape)


class TableDecoding(HostCalls):
    """All images are at the same step."""

    def __init__(self, plan: Plan, known: NDArray[np.int64], prefixes: Prefixes, drawing: Drawing) -> None:
        self.known, self.done = known, 0
        self._steps, self._prefixes, self._drawing = plan.steps, prefixes, drawing
        self._cells, self._kept = plan.schedule.cells, plan.schedule.kept

    @property
    def decided(self) -> NDArray[np.bool_]:
        known = [np.array(self._kept, np.int64), *(step.target_cells for step in self._steps[: self.done])]
        facts = np.isin(np.arange(self._cells), np.concatenate(known))
        return np.tile(facts, (len(self._drawing.random), 1))

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


class JacobiDecoding(HostCalls):
    """Each image is where its drafts have brought it; its rows have a write index, positions and masks of their own.

    A call feeds the inputs of the line from the first that is not yet in the cache: that one is right, the others are
    as right as the drafts of their cells. What it samples becomes the cells' tokens. Those that saw right inputs alone
    are decided, the others are drafts again. Inputs stay in the cache up to the first wrong one, the next call writes
    over the others: where a later input does not see that one, its cell is decided all the same, and fed again. A cell
    that enters the window begins with the token of the cell above, in row 0 with token 0.
    """

    def __init__(self, plan: Plan, line: Line, known: NDArray[np.int64], prefixes: Prefixes, drawing: Drawing) -> None:
        images = len(drawing.random)
        self.known, self.passes = known, np.zeros(images, np.int64)
        self._plan, self._line, self._prefixes, self._drawing = plan, line, prefixes, drawing
        self._slot = plan.steps[0].write_index  # of the line's first input
        self._at = np.zeros(images, np.int64)  # inputs in the cache that are right
        self._decided = np.zeros((images, plan.schedule.cells), np.bool_)
        self._drafted = np.zeros_like(self._decided)  # cells that are decided, or have a draft
        self._lanes = len(known) // images  # rows of an image
        self._image = np.arange(images)[:, None]
        self._first = np.zeros(images, np.int64)  # of the next call: its first place in the line
        self._width = 0

    @property
    def decided(self) -> NDArray[np.bool_]:
        return self._decided

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
        return self._slot + int(self._at.max()) + self._width

    def fill(self, buffers: StepBuffers) -> None:
        self._width = buffers.tokens.shape[1]
        self._first = first = np.minimum(self._at, len(self._line) - 1)  # done images repeat the last input
        windows = self._plan.windows[self._width]
        self._draft(windows.source_cells[first], windows.has_source[first])
        self._of_lanes(buffers.tokens)[:] = self._of_lanes(self.known)[:, self._image, windows.columns[first]]
        positions = buffers.positions
        self._of_lanes(positions)[:] = windows.positions[first]
        if self._prefixes.places is not None:
            positions += self._prefixes.places
        self._of_lanes(buffers.write_index)[:] = self._slot + first
        self._of_lanes(buffers.mask[:, 0])[:] = windows.masks[first]
        if self._prefixes.seen is not None:
            buffers.mask[:, 0, :, self._plan.steps[0].prompt] = self._prefixes.seen[:, None]
        self._drawing.random.fill(buffers, windows.target_cells[first])
        buffers.guidance[:] = 1 + (self._drawing.guidance[:, None] - 1) * windows.guidance[first]

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return buffers.next_tokens

    def store(self, buffers: StepBuffers) -> None:
        windows, first, drawn = self._plan.windows[self._width], self._first, buffers.next_tokens
        wrong, misled = self._judge(buffers.tokens[: len(first)], drawn)
        cells = windows.target_cells[first]
        running = self._at < len(self._line)
        new = windows.decides[first] & running[:, None] & ~self._decided[self._image, cells]
        images, outputs = np.nonzero(new)
        found = cells[images, outputs]
        self._of_lanes(self.known)[:, images, found] = drawn[images, outputs]
        self._drafted[images, found] = True
        self._decided[images, found] = ~misled[images, outputs]
        self.passes += running
        right = np.logical_and.accumulate(~wrong, axis=1).sum(axis=1)
        self._at += np.minimum(right, len(self._line) - self._at)

    def _judge(self, fed: NDArray[np.int64], drawn: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which inputs of the window were wrong, and which outputs saw one that was, (images, width) each.

        An input is wrong if it was fed a draft that did not come out again, or that came out of an output so misled.
        Where each sees all before it, what comes behind the first wrong one counts as wrong.
        """
        windows, first = self._plan.windows[self._width], self._first
        drafted = windows.has_source[first] & ~self._decided[self._image, windows.source_cells[first]]
        output = windows.outputs[first]  # that decides a draft's cell
        differs = drafted & (drawn[self._image, output] != fed)
        if windows.sees is None:
            misled = np.logical_or.accumulate(differs, axis=1)
            return misled, misled
        sees, wrong = windows.sees[first], differs
        while True:
            misled = (sees & wrong[:, None]).any(axis=2)
            found = differs | (drafted & misled[self._image, output])
            if (found == wrong).all():
                return wrong, misled
            wrong = found

    def _draft(self, cells: NDArray[np.int64], has_cell: NDArray[np.bool_]) -> None:
        """First drafts of the cells, (images, width), that have none: those of the cells above, which come before."""
        missing = has_cell & ~self._drafted[self._image, cells]
        parts = [missing]
        if self._plan.windows[self._width].has_above:  # then drafts are made from drafts, one output after another
            parts = [missing & (np.arange(self._width) == place) for place in np.flatnonzero(missing.any(axis=0))]
        known = self._of_lanes(self.known)
        for part in parts:
            images, outputs = part.nonzero()
            new = cells[images, outputs]
            above = new - self._plan.schedule.grid[1]
            known[:, images, new] = np.where(above >= 0, known[:, images, np.maximum(above, 0)], 0)
            self._drafted[images, new] = True

    def _of_lanes(self, rows: NDArray[Any]) -> NDArray[Any]:
        return of_lanes(rows, len(self._image))


class AdaptiveDecoding(HostCalls):
    """Each image is decoded row by row, and its rows start as its own tokens allow (`schedules/raster.py`).

    Images of a batch are at steps of their own, with as many inputs as the widest of them; done ones repeat their last.
    """

    def __init__(
        self, plan: Plan, rules: RowRules, known: NDArray[np.int64], prefixes: Prefixes, drawing: Drawing
    ) -> None:
        count = len(drawing.random)
        self.known, self.decided = known, np.zeros((count, plan.schedule.cells), np.bool_)
        self._plan, self._prefixes, self._drawing = plan, prefixes, drawing
        self._images = [RowImage(plan, rules) for _ in range(count)]
        self._written = 0

    @property
    def passes(self) -> NDArray[np.int64]:
        return np.array([image.passes for image in self._images])

    @property
    def done(self) -> int:
        return min(image.decided for image in self._images)

    @property
    def shape(self) -> tuple[int, int] | None:
        if all(image.complete for image in self._images):
            return None
        return fitting_width(max(image.step.width for image in self._images), self._plan.widths), 0

    @property
    def written(self) -> int:
        return self._written

    def fill(self, buffers: StepBuffers) -> None:
        count, width = len(self._images), buffers.tokens.shape[1]
        columns, inputs, cells = np.array([image.fed(width) for image in self._images]).transpose(1, 0, 2)
        of_lanes(buffers.tokens, count)[:] = of_lanes(self.known, count)[:, np.arange(count)[:, None], columns]
        positions = buffers.positions
        of_lanes(positions, count)[:] = inputs
        if self._prefixes.places is not None:
            positions += self._prefixes.places
        first = self._plan.prompt_slots + np.array([image.write_index for image in self._images])
        of_lanes(buffers.write_index, count)[:] = first
        self._written = int(first.max()) + width
        self._fill_masks(buffers.mask[:, 0])
        self._drawing.random.fill(buffers, cells)
        weights = np.array([[image.step.guidance] for image in self._images])
        buffers.guidance[:] = 1 + (self._drawing.guidance[:, None] - 1) * weights

    def _fill_masks(self, masks: NDArray[np.bool_]) -> None:
        """What each row of (rows, width, slots) sees, prompts between the zero slots and the image's own."""
        prompt, width = self._plan.steps[0].prompt, masks.shape[1]
        seen = np.stack([image.mask[np.minimum(np.arange(width), image.step.width - 1)] for image in self._images])
        lanes = of_lanes(masks, len(self._images))
        lanes[..., : prompt.start], lanes[..., prompt.stop :] = seen[..., : prompt.start], seen[..., prompt.start :]
        if self._prefixes.seen is not None:
            masks[..., prompt] = self._prefixes.seen[:, None]

    def drawn(self, buffers: StepBuffers) -> NDArray[np.int64]:
        return buffers.next_tokens

    def store(self, buffers: StepBuffers) -> None:
        drawn = buffers.next_tokens
        running = ((index, image) for index, image in enumerate(self._images) if not image.complete)
        found = [(index, row, cell) for index, image in running for row, cell in image.take(drawn[index])]
        images, rows, cells = np.array(found, np.int64).reshape(-1, 3).T
        of_lanes(self.known, len(self._images))[:, images, cells] = drawn[images, rows]
        self.decided[images, cells] = True


class RowImage:
    """One image: the step that it takes next, and the draft of its row on trial."""

    def __init__(self, plan: Plan, rules: RowRules) -> None:
        schedule = plan.schedule
        self.passes = self.decided = 0
        self.complete = False
        self._rows = rows_of(schedule.grid, rules, schedule.zero_slots)
        self._visibility = Visibility(plan.slots - plan.prompt_slots, schedule.zero_slots)
        self._column = column_of(schedule)
        self._draft: int | None = None
        self._advance()

    def fed(self, width: int) -> tuple[list[int], list[int], list[int]]:
        """Of the inputs of a call: columns of `known`, positions, and the cells that their outputs decide, -1 for none.

        Beyond the step's own, its last input is repeated.
        """
        given = self.step.inputs + self.step.inputs[-1:] * (width - self.step.width)
        cells = [-1] * width
        for row, cell in self.step.targets:
            cells[row] = cell
        return [self._column(one) for one in given], [one.position for one in given], cells

    def take(self, drawn: NDArray[np.int64]) -> tuple[Target, ...]:
        """What the step has decided, from the tokens of its outputs; the image is at its next step then."""
        decided = self.step.targets
        token = int(drawn[decided[-1].row])
        if self._rows.trial is None or token == self._draft:
            self._draft = None
        else:  # the next step writes over its slot
            self._draft = token
            self._rows.withdraw()
            decided = decided[:-1]
        self.passes += 1
        self.decided += len(decided)
        self.complete = self._rows.complete
        if not self.complete:
            self._advance()
        return decided

    def _advance(self) -> None:
        self.write_index = self._rows.slot
        self.step = self._rows.next()
        self.mask = self._visibility.mask(self.step, self.write_index)
