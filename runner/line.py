"""The inputs of a table in one line, and the windows of it that calls feed when they run ahead on drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from arforge.runner.schedules.schedule import Input, Schedule, Source


@dataclass(frozen=True)
class Line:
    """The inputs of a table in the order of their cache slots. Each stays, and sees only what stands before it."""

    columns: NDArray[np.int64]  # (inputs) of `known` that hold their tokens
    positions: NDArray[np.int64]  # (inputs)
    sources: NDArray[np.int64]  # (inputs) the cell that each is the token of; -1 where it is no cell's
    targets: NDArray[np.int64]  # (inputs) the cell that each decides; -1 where it decides none
    guidance: NDArray[np.float64]  # (inputs) weights of guidance
    deciders: NDArray[np.int64]  # (cells) the input that decides each
    ranks: NDArray[np.int32]  # (inputs)
    holes: NDArray[np.int32]  # (inputs) zero slots that each sees
    until: NDArray[np.int32]  # (inputs) the first input that no longer sees it, since it is retired
    steps: NDArray[np.int64]  # (inputs + 1) steps of the table that the first so many inputs are all of

    def __len__(self) -> int:
        return len(self.columns)

    def sees(self, inputs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which inputs of the line those at some places see, bool (*places, inputs)."""
        place, every = inputs[..., None].astype(np.int32), np.arange(len(self), dtype=np.int32)
        return (every <= place) & (place < self.until) & (self.ranks <= self.ranks[place])


@dataclass(frozen=True)
class LineWindows:
    """What a call of one width feeds from each place of a line on, made once; beyond its end the last input repeats.

    The first axis is the place, the second the output. Most are views of one array that is no longer than the line.
    """

    places: NDArray[np.int64]  # of the inputs
    columns: NDArray[np.int64]
    positions: NDArray[np.int64]
    guidance: NDArray[np.float64]
    source_cells: NDArray[np.int64]  # cell 0 where the input is no cell's token
    has_source: NDArray[np.bool_]
    target_cells: NDArray[np.int64]  # likewise
    decides: NDArray[np.bool_]  # whether an output decides a cell; repeated inputs do not
    outputs: NDArray[np.int64]  # that decide the inputs' cells; any where none of the window does
    masks: NDArray[np.bool_]  # (place, width, slots), without the prompts'
    sees: NDArray[np.bool_] | None  # (place, width, width) among themselves; None where each sees all before it
    has_above: bool  # whether a window may have the token of a cell and of the cell above it

    @classmethod
    def of(cls, line: Line, width: int, slots: int, first_slot: int, across: int) -> LineWindows:
        """`slots` of the cache, the line's from `first_slot` on; `across`: cells of a row."""
        count = len(line)
        every = np.minimum(np.arange(count + width - 1), count - 1)
        places = sliding_window_view(every, width)
        seen = line.sees(np.arange(count))
        table = np.zeros((count, slots), np.bool_)
        table[:, :first_slot] = np.arange(first_slot) < line.holes[:, None]
        table[:, first_slot : first_slot + count] = seen
        inside = np.arange(len(places))[:, None] + np.arange(width) < count
        ordered = bool((seen == np.tri(count, dtype=np.bool_)).all())

        def windows(values: NDArray[Any]) -> NDArray[Any]:
            return sliding_window_view(values[every], width)

        return cls(
            places=places,
            columns=windows(line.columns),
            positions=windows(line.positions),
            guidance=windows(line.guidance),
            source_cells=windows(np.maximum(line.sources, 0)),
            has_source=windows(line.sources >= 0),
            target_cells=windows(np.maximum(line.targets, 0)),
            decides=windows(line.targets >= 0) & inside,
            outputs=np.clip(windows(line.deciders[line.sources]) - places[:, :1], 0, width - 1),
            masks=sliding_window_view(table[every], width, axis=0).transpose(0, 2, 1),
            has_above=any(
                ((later >= across) & (later - across == earlier)).any()
                for later, earlier in ((line.sources[by:], line.sources[:-by]) for by in range(1, width))
            ),
            sees=None if ordered else seen[places[:, :, None], places[:, None]],
        )


def make_line(schedule: Schedule, column: Callable[[Input], int]) -> Line:
    """The line of a schedule that `check.is_line` finds to be one."""
    inputs = [given for step in schedule.steps for given in step.inputs]
    ends = np.cumsum([step.width for step in schedule.steps])
    targets, deciders = np.full(len(inputs), -1), np.zeros(schedule.cells, np.int64)
    until = np.full(len(inputs), len(inputs), np.int32)
    for step, end in zip(schedule.steps, ends, strict=True):
        first = end - step.width
        until[[slot - schedule.zero_slots for slot in step.retire]] = first
        for row, cell in step.targets:
            targets[first + row], deciders[cell] = cell, first + row
    return Line(
        columns=np.array([column(given) for given in inputs], np.int64),
        positions=np.array([given.position for given in inputs], np.int64),
        sources=np.array([given.value if given.source is Source.CELL else -1 for given in inputs], np.int64),
        targets=targets,
        guidance=np.array([step.guidance for step in schedule.steps for _ in step.inputs]),
        deciders=deciders,
        ranks=np.array([given.rank for given in inputs], np.int32),
        holes=np.array([given.holes for given in inputs], np.int32),
        until=until,
        steps=np.searchsorted(ends, np.arange(len(inputs) + 1), side="right"),
    )
