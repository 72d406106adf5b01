"""Raster schedules of models whose grid rows end in a token, as Lumina-mGPT and Emu3: next-token and ZipAR.

The end of a row is known beforehand, so it is fed without having been sampled: it starts the row below. Positions are
those of the finished sequence, row ends counted, and an input sees what stands before it there and is written already.
"""

from __future__ import annotations

from dataclasses import replace

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.raster import check_interval, check_jacobi, weight
from arforge.runner.schedules.schedule import CLASS_TOKEN, Input, RowRules, Schedule, Source, Step, Target


def next_token(
    specification: str, grid: tuple[int, int], row_end: int, cfg_interval: int = -1, jacobi: int = 0
) -> Schedule:
    """One cell a step, in raster order; the end of a row is fed beside its last cell.

    `row_end`: the index among the special tokens of the one that ends rows. Cells after `cfg_interval` + 1 (if not -1)
    use conditional logits alone. `jacobi`: inputs that a call runs ahead on drafts, with the same tokens.
    """
    check_jacobi(jacobi, grid)
    rules = RowRules(grid[1], cfg_interval=cfg_interval, row_end=row_end)
    return replace(table(specification, grid, rules), jacobi=jacobi)


def zipar(
    specification: str, grid: tuple[int, int], row_end: int, window: int, cfg_interval: int = -1, jacobi: int = 0
) -> Schedule:
    """ZipAR as Lumina-mGPT's published loop has it: a row starts once the row above has `window` - 1 cells.

    The end of the row above is counted in the window, as the first of the new row's inputs. Every started row gains
    one cell a step. Raises ScheduleError if the window is not within 2..width + 1; the last is next-token order.
    """
    check_jacobi(jacobi, grid)
    rules = RowRules(window - 1, cfg_interval=cfg_interval, row_end=row_end)
    return replace(table(specification, grid, rules), jacobi=jacobi)


def adaptive_zipar(
    specification: str, grid: tuple[int, int], row_end: int, window: int, cfg_interval: int = -1
) -> Schedule:
    """As `raster.adaptive_zipar`, with the window of `zipar`; on trial a row feeds the end of the row above it."""
    rules = RowRules(window - 1, cfg_interval=cfg_interval, row_end=row_end)
    return replace(table(specification, grid, rules), rows=rules)


def table(specification: str, grid: tuple[int, int], rules: RowRules) -> Schedule:
    """The schedule in which every row starts as soon as it may. Raises ScheduleError for rules that do not fit."""
    height, width = grid
    if not 1 <= rules.window <= width:
        raise ScheduleError(
            f"window {rules.window + 1} does not fit a grid of {height}x{width} whose rows end in a token: use zipar:2 "
            f"to zipar:{width + 1}"
        )
    check_interval(rules.cfg_interval)
    rows = EndedRows(grid, rules)
    steps = []
    while not rows.complete:
        steps.append(rows.next())
    return Schedule(specification, grid, tuple(steps))


class EndedRows:
    """The decoding of one image: how far each row is (`rows.Rows`)."""

    def __init__(self, grid: tuple[int, int], rules: RowRules, slot: int = 0) -> None:
        self.height, self.width = grid
        self.rules, self.slot = rules, slot
        self.decoded = [0] * self.height
        self.trial: int | None = None
        self.ended: set[int] = set()  # rows whose last cell is in the cache

    @property
    def complete(self) -> bool:
        return self.decoded[-1] == self.width

    def next(self) -> Step:
        inputs: list[Input] = []
        rows: list[tuple[int, int]] = []  # row of the step, row of the grid
        guidance = weight(sum(self.decoded) - 1, self.rules.cfg_interval)
        for row, column in enumerate(self.decoded):
            if row and not column and self.decoded[row - 1] < self.rules.window:
                break
            if column < self.width:
                rows.append((len(inputs), row))
            elif row in self.ended or row == self.height - 1:
                continue  # nothing comes after the last cell
            else:
                self.ended.add(row)
            inputs.append(self._input(row, column))
        _, last = rows[-1]
        self.trial = last if last and not self.decoded[last] and self.decoded[last - 1] < self.width else None
        targets = tuple(Target(place, row * self.width + self.decoded[row]) for place, row in rows)
        for _, row in rows:
            self.decoded[row] += 1
        self.slot += len(inputs)
        return Step(tuple(inputs), targets, len(inputs), guidance=guidance)

    def withdraw(self) -> None:
        assert self.trial is not None
        self.decoded[self.trial] = 0
        self.slot -= 1

    def _input(self, row: int, column: int) -> Input:
        """What stands before a cell: the cell beside it, the end of the row above, or the condition."""
        place = row * (self.width + 1) + column
        if column:
            return Input(Source.CELL, row * self.width + column - 1, position=place, rank=place)
        if not row:
            return CLASS_TOKEN
        assert self.rules.row_end is not None
        return Input(Source.SPECIAL, self.rules.row_end, position=place, rank=place)
