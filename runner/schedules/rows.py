"""Images that are decoded row by row, each of them as far as it is."""

from __future__ import annotations

from typing import Protocol

from arforge.runner.schedules import raster, row_ends
from arforge.runner.schedules.schedule import RowRules, Schedule, Step


class Rows(Protocol):
    """How far the rows of one image are, and what its cache holds. In `next` every row starts as soon as it may.

    One row at most is on trial: it is the last of the step, so its input and its output are, and `withdraw` undoes it.
    """

    decoded: list[int]
    """Cells that each row has, those that the last step samples among them."""
    slot: int
    """The first cache slot that the next step writes."""
    trial: int | None
    """The row that the last step started while the one above it was not complete."""

    @property
    def complete(self) -> bool: ...

    def next(self) -> Step: ...

    def withdraw(self) -> None:
        """The row on trial has not started after all; the next step will have it again."""


def rows_of(grid: tuple[int, int], rules: RowRules, slot: int = 0) -> Rows:
    """Those of an image of which nothing is decided; `slot`: the first that it writes."""
    kind = raster.ZipARRows if rules.row_end is None else row_ends.EndedRows
    return kind(grid, rules, slot)


def bound(specification: str, grid: tuple[int, int], rules: RowRules) -> Schedule:
    """The table in which every row starts as soon as it may. Raises ScheduleError for rules that do not fit."""
    table = raster.table if rules.row_end is None else row_ends.table
    return table(specification, grid, rules)
