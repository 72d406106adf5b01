"""Turns a schedule into the arrays of its steps, once, so that the step loop only copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import StepBuffers
from arforge.runner.bundle import ModelFacts
from arforge.runner.conditions import Prompt
from arforge.runner.errors import EngineError
from arforge.runner.line import Line, LineWindows, make_line
from arforge.runner.schedules.narrow import narrowed
from arforge.runner.schedules.schedule import Input, Schedule, Source, Step
from arforge.runner.schedules.visibility import masks, sees_all_before


@dataclass(frozen=True)
class Prefixes:
    """How what stands before the images changes the inputs of a plan's steps, row by row."""

    seen: NDArray[np.bool_] | None = None  # (rows, prompt slots) that each row sees; None where prompts have none
    places: NDArray[np.int64] | None = None  # (rows, 1) added to positions; None where those are the grid's


NO_PREFIXES = Prefixes()


@dataclass(frozen=True)
class PlannedStep:
    """One step at the width that the engine runs it with; padding repeats the last input and is never kept."""

    columns: NDArray[np.int64]  # (width) columns of `known` that hold the inputs' tokens
    positions: NDArray[np.int64]  # (width)
    mask: NDArray[np.bool_]  # (width, slots), without the prompt's
    prompt: slice  # the slots of the prompt
    write_index: int
    query_positions: NDArray[np.int64]  # (queries), empty where the model has none
    target_rows: NDArray[np.int64]  # (targets)
    target_cells: NDArray[np.int64]  # (targets)
    guidance: float

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def queries(self) -> int:
        return len(self.query_positions)

    @overload
    def scale(self, guidance: float) -> float: ...
    @overload
    def scale(self, guidance: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def scale(self, guidance: Any) -> Any:
        """This step's guidance scale in a request of scale `guidance`, one number or one an image."""
        return 1 + (guidance - 1) * self.guidance

    def fill(self, buffers: StepBuffers, known: NDArray[np.int64], prefixes: Prefixes = NO_PREFIXES) -> None:
        """Write this step's inputs; their tokens come from `known`, `prefixes` from `Prefill.start`."""
        np.take(known, self.columns, axis=1, out=buffers.tokens)
        buffers.positions[:] = self.positions if prefixes.places is None else self.positions + prefixes.places
        buffers.write_index[:] = self.write_index
        buffers.mask[:] = self.mask
        if prefixes.seen is not None:
            buffers.mask[:, 0, :, self.prompt] = prefixes.seen[:, None]
        if buffers.query_positions is not None:
            buffers.query_positions[:] = self.query_positions

    def store(self, buffers: StepBuffers, known: NDArray[np.int64]) -> None:
        """Enter the sampled tokens into every row of `known`, conditional and not."""
        drawn = buffers.next_tokens[:, self.target_rows]
        for first in range(0, len(known), len(drawn)):
            known[first : first + len(drawn), self.target_cells] = drawn


@dataclass(frozen=True)
class Plan:
    """`known` (rows, cells + conditions + special tokens) is where tokens are read from and written to."""

    schedule: Schedule
    steps: tuple[PlannedStep, ...]
    slots: int  # of the cache, the prompt's included
    prompt_slots: int = 0  # behind the zero slots
    widths: tuple[int, ...] | None = None  # of the engine; None: any
    line: Line | None = None  # of a schedule that runs ahead on drafts
    jacobi: int = 0  # inputs that a call of it has at most
    windows: Mapping[int, LineWindows] = field(default_factory=dict)  # of that line, by the width of a call

    @property
    def kinds(self) -> set[tuple[int, int]]:
        """Width and queries of the calls that an engine must take."""
        if self.jacobi:
            return {(fitting_width(width, self.widths), 0) for width in (1, self.jacobi)}
        if self.schedule.rows:
            return {(fitting_width(width, self.widths), 0) for width in self.schedule.widths}
        return {(step.width, step.queries) for step in self.steps}

    @cached_property
    def all_before(self) -> bool:
        """Whether every input sees the slots up to its own and no others."""
        return sees_all_before(self.schedule)

    @property
    def own_pace(self) -> bool:
        """Whether images of a batch get on as their tokens allow, rather than all alike."""
        return bool(self.jacobi or self.schedule.rows)

    @property
    def lockstep_width(self) -> int:
        """Of the widest call, where the images of a batch all write to the same slots; else 0."""
        return 0 if self.own_pace else max(width for width, _ in self.kinds)

    @property
    def length(self) -> int:
        """What `Decoding.done` counts up to: the table's steps, or cells where rows start by themselves."""
        return self.schedule.cells if self.schedule.rows else len(self.steps)

    def known(
        self, model: ModelFacts, prompts: Sequence[Prompt], tokens: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The tokens known before the first step, a prompt a row: the images', then those of unconditional rows.

        `tokens` (images, cells): those of kept cells count; None where the schedule keeps none.
        """
        cells, rows = self.schedule.cells, len(prompts)
        special = cells + self.schedule.conditions
        known = np.zeros((rows, special + self.schedule.specials), dtype=np.int64)
        if kept := list(self.schedule.kept):
            assert tokens is not None
            known[:, kept] = np.tile(tokens[:, kept], (rows // len(tokens), 1))
        known[:, cells] = [prompt.token for prompt in prompts]
        known[:, special:] = model.specials[: self.schedule.specials]
        return known


def make_plan(
    schedule: Schedule, widths: Sequence[int] | None, prompt_slots: int = 0, exact_width: int | None = None
) -> Plan:
    """Plan `schedule` for an engine of these widths (None: any). Raises EngineError if all are too narrow.

    `prompt_slots`: slots that prompts fill before the first step, between the zero slots and the schedule's own.
    `exact_width`: the engine's; running ahead keeps to it, since wider calls could round to other tokens.
    """
    schedule = cut(schedule, widths)
    column = column_of(schedule)
    pairs = list(zip(schedule.write_indices, schedule.steps, strict=True))
    slots = max(write_index + fitting_width(step.width, widths) for write_index, step in pairs)
    if schedule.queries:  # attention may take as many slots as queries
        slots = max(slots, *(fitting_width(max(1, len(step.targets)), widths) for step in schedule.steps))
    if schedule.rows:  # at most a stand-in or an end of each row, beside the cells and the condition
        slots = schedule.zero_slots + schedule.cells + schedule.grid[0] + fitting_width(schedule.widths[-1], widths)
    line, windows = None, dict[int, LineWindows]()
    jacobi = schedule.jacobi if exact_width is None else min(schedule.jacobi, exact_width)
    if jacobi:
        line = make_line(schedule, column)
        slots = schedule.zero_slots + len(line) + fitting_width(jacobi, widths)
        for width in {fitting_width(inputs, widths) for inputs in (1, jacobi)}:
            first_slot = schedule.zero_slots + prompt_slots
            windows[width] = LineWindows.of(line, width, slots + prompt_slots, first_slot, schedule.grid[1])
    prompt = slice(schedule.zero_slots, schedule.zero_slots + prompt_slots)
    steps = []
    for (write_index, step), mask in zip(pairs, masks(schedule, slots), strict=True):
        made = plan_step(step, mask, write_index, fitting_width(step.width, widths), column, prompt)
        asked = _asked(made.target_cells, widths) if schedule.queries else made.query_positions
        steps.append(replace(made, query_positions=asked))
    return Plan(
        schedule,
        tuple(steps),
        slots + prompt_slots,
        prompt_slots,
        None if widths is None else tuple(widths),
        line,
        jacobi,
        windows,
    )


def cut(schedule: Schedule, widths: Sequence[int] | None) -> Schedule:
    """In steps that the widest of `widths` holds, where they can be cut; those of images are as wide as they are."""
    return schedule if widths is None or schedule.rows else narrowed(schedule, max(widths))


def step_shapes(schedule: Schedule, widths: Sequence[int] | None) -> Iterator[tuple[int, int, int]]:
    """Write index, width and queries of each step as `make_plan` has them, without its arrays. Raises as that does."""
    schedule = cut(schedule, widths)
    for write_index, step in zip(schedule.write_indices, schedule.steps, strict=True):
        queries = fitting_width(max(1, len(step.targets)), widths) if schedule.queries else 0
        yield write_index, fitting_width(step.width, widths), queries


def column_of(schedule: Schedule) -> Callable[[Input], int]:
    """Where `known` holds the token of an input."""
    first = {
        Source.CELL: 0,
        Source.CONDITION: schedule.cells,
        Source.SPECIAL: schedule.cells + schedule.conditions,
    }
    return lambda given: first[given.source] + given.value


def plan_step(
    step: Step, mask: NDArray[np.bool_], write_index: int, width: int, column: Callable[[Input], int], prompt: slice
) -> PlannedStep:
    """One step for calls of `width` inputs, without queries; mask and write index as where there are no prompts."""
    spread = np.minimum(np.arange(width), step.width - 1)
    prompt_slots = prompt.stop - prompt.start
    return PlannedStep(
        columns=np.array([column(given) for given in step.inputs], dtype=np.int64)[spread],
        positions=np.array([given.position for given in step.inputs], dtype=np.int64)[spread],
        mask=np.insert(mask, [prompt.start] * prompt_slots, values=False, axis=1)[spread],
        prompt=prompt,
        write_index=write_index + prompt_slots,
        target_rows=np.array([target.row for target in step.targets], dtype=np.int64),
        target_cells=np.array([target.cell for target in step.targets], dtype=np.int64),
        query_positions=np.zeros(0, np.int64),
        guidance=step.guidance,
    )


def _asked(cells: NDArray[np.int64], widths: Sequence[int] | None) -> NDArray[np.int64]:
    """The positions of the cells to decide; a step that decides none asks for one all the same, and drops it."""
    positions = 1 + cells if len(cells) else np.zeros(1, dtype=np.int64)
    width = fitting_width(len(positions), widths)
    return positions[np.minimum(np.arange(width), len(positions) - 1)]


def fitting_width(width: int, widths: Sequence[int] | None) -> int:
    """The least width of an engine (None: any) that is at least `width`. Raises EngineError if all are too narrow."""
    if widths is None:
        return width
    fitting = [known for known in widths if known >= width]
    if not fitting:
        raise EngineError(
            f"the schedule decodes {width} tokens in a step, the engine was built for widths "
            f"{', '.join(map(str, widths))}: rebuild it with `arforge build --width {width}`"
        )
    return min(fitting)
