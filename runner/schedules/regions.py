"""The schedule of PAR, parallel autoregressive generation (arXiv 2412.15119): one cell of every region a step."""

from __future__ import annotations

import math

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.schedule import CLASS_TOKEN, Input, Schedule, Source, Step, Target


def region_order(grid: tuple[int, int], regions: int) -> list[int]:
    """Cells in PAR's sequence order: groups by the place inside a region, in each group the regions, both raster.

    Raises ScheduleError unless `regions` is a square number whose side divides both sides of the grid.
    """
    height, width = grid
    side = math.isqrt(regions) if regions > 0 else 0
    if regions < 2 or side * side != regions or height % side or width % side:
        raise ScheduleError(
            f"{regions} regions do not fit a grid of {height}x{width}: use a square number such as 4 or 16 "
            "whose root divides both sides"
        )
    rows, columns = height // side, width // side
    places = [(row, column) for row in range(rows) for column in range(columns)]
    corners = [(i * rows, j * columns) for i in range(side) for j in range(side)]
    return [(top + row) * width + left + column for row, column in places for top, left in corners]


def par(specification: str, grid: tuple[int, int], regions: int) -> Schedule:
    """PAR with `regions` regions; the model's special tokens are the transition tokens, one fewer than regions.

    The first cell of each region is decided alone. The transition step feeds the last of them and the transition
    tokens; from there every step feeds the last group, and its k-th output decides the k-th cell of the next.
    A group sees itself and all before it.
    """
    order = region_order(grid, regions)
    groups = [order[start : start + regions] for start in range(0, len(order), regions)]
    steps = []
    for index, cell in enumerate(groups[0]):
        given = CLASS_TOKEN if index == 0 else _input(groups[0][index - 1], rank=index)
        steps.append(Step((given,), (Target(0, cell),), commit=1))
    transition = [Input(Source.SPECIAL, i, position=0, rank=regions) for i in range(regions - 1)]
    last = _input(groups[0][-1], rank=regions)
    for index, group in enumerate(groups[1:]):
        rank = regions * (index + 1)
        inputs = [last, *transition] if index == 0 else [_input(cell, rank) for cell in groups[index]]
        targets = tuple(Target(row, cell) for row, cell in enumerate(group))
        steps.append(Step(tuple(inputs), targets, commit=regions))
    return Schedule(specification, grid, tuple(steps))


def _input(cell: int, rank: int) -> Input:
    return Input(Source.CELL, cell, position=1 + cell, rank=rank)
