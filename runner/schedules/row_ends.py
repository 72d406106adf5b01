"""Raster schedules of models whose grid rows end in a token, as Lumina-mGPT and Emu3: next-token and ZipAR.

The end of a row is known beforehand, so it is fed without having been sampled: it starts the row below. Positions are
those of the finished sequence, row ends counted, and an input sees what stands before it there and is written already.
"""

from __future__ import annotations

from dataclasses import replace

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.raster import check_interval, check_jacobi, weight
from arforge.runner.schedules.schedule import CLASS_TOKEN, Input, Schedule, Source, Step, Target


def next_token(
    specification: str, grid: tuple[int, int], row_end: int, cfg_interval: int = -1, jacobi: int = 0
) -> Schedule:
    """One cell a step, in raster order; the end of a row is fed beside its last cell.

    `row_end`: the index among the special tokens of the one that ends rows. Cells after `cfg_interval` + 1 (if not -1)
    use conditional logits alone. `jacobi`: inputs that a call runs ahead on drafts, with the same tokens.
    """
    check_interval(cfg_interval)
    check_jacobi(jacobi, grid)
    return replace(_Rows(grid, row_end, grid[1], cfg_interval).build(specification), jacobi=jacobi)


def zipar(
    specification: str, grid: tuple[int, int], row_end: int, window: int, cfg_interval: int = -1, jacobi: int = 0
) -> Schedule:
    """ZipAR as Lumina-mGPT's published loop has it: a row starts once the row above has `window` - 1 cells.

    The end of the row above is counted in the window, as the first of the new row's inputs. Every started row gains
    one cell a step. Raises ScheduleError if the window is not within 2..width + 1; the last is next-token order.
    """
    height, width = grid
    if not 2 <= window <= width + 1:
        raise ScheduleError(
            f"window {window} does not fit a grid of {height}x{width} whose rows end in a token: use zipar:2 to "
            f"zipar:{width + 1}"
        )
    check_interval(cfg_interval)
    check_jacobi(jacobi, grid)
    return replace(_Rows(grid, row_end, window - 1, cfg_interval).build(specification), jacobi=jacobi)


class _Rows:
    """How far each row is; row r + 1 starts when row r has `delay` cells."""

    def __init__(self, grid: tuple[int, int], row_end: int, delay: int, cfg_interval: int) -> None:
        self.height, self.width = grid
        self.row_end = row_end
        self.delay, self.cfg_interval = delay, cfg_interval

    def build(self, specification: str) -> Schedule:
        last = (self.height - 1) * self.delay + self.width
        steps = tuple(self._step(index) for index in range(last))
        return Schedule(specification, (self.height, self.width), steps)

    def _step(self, index: int) -> Step:
        inputs: list[Input] = []
        targets: list[Target] = []
        decided = 0
        for row in range(self.height):
            column = index - row * self.delay  # the cell that this row decides now
            decided += min(max(column, 0), self.width)
            if not 0 <= column <= self.width:
                continue
            if column < self.width:
                targets.append(Target(len(inputs), row * self.width + column))
            elif row == self.height - 1:
                continue  # nothing comes after the last cell
            inputs.append(self._input(row, column))
        return Step(tuple(inputs), tuple(targets), len(inputs), guidance=weight(decided - 1, self.cfg_interval))

    def _input(self, row: int, column: int) -> Input:
        """What stands before a cell: the cell beside it, the end of the row above, or the condition."""
        place = row * (self.width + 1) + column
        if column:
            return Input(Source.CELL, row * self.width + column - 1, position=place, rank=place)
        return Input(Source.SPECIAL, self.row_end, position=place, rank=place) if row else CLASS_TOKEN
