"""The one checker that every generator and reader of schedules goes through."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.rows import bound
from arforge.runner.schedules.schedule import Schedule, Source, Step

MAX_CELLS = 1 << 16


def checked(schedule: Schedule) -> Schedule:
    """Return `schedule` if a runner can execute it, else raise ScheduleError.

    Proves that every cell is kept or decided once, that every input exists before it is read, that positions and
    ranks are in range, and that the cache is used consistently. Memory and steps are bounded by the grid and the
    condition, whatever the schedule says: by `capacity` cache slots, of which each step uses up one or decides a cell.
    """
    height, width = schedule.grid
    if not (height > 0 and width > 0 and height * width <= MAX_CELLS):
        raise ScheduleError(f"schedule {schedule.specification}: grid {height}x{width} is out of range")
    if not (schedule.steps and 0 <= schedule.conditions <= MAX_CELLS and schedule.zero_slots >= 0):
        raise ScheduleError(f"schedule {schedule.specification}: no steps, negative sizes, or too many conditions")
    if schedule.zero_slots > 2 * schedule.cells:
        raise ScheduleError(f"schedule {schedule.specification}: {schedule.zero_slots} zero slots are out of range")
    if len(set(schedule.kept)) != len(schedule.kept) or not set(schedule.kept) <= set(range(schedule.cells)):
        raise ScheduleError(f"schedule {schedule.specification}: keeps a cell twice, or one outside the grid")
    state = _State(schedule)
    for index, step in enumerate(schedule.steps):
        state.check(index, step)
    if schedule.jacobi and not is_line(schedule):
        raise ScheduleError(f"schedule {schedule.specification}: its inputs are no line to run ahead of on drafts")
    if (
        schedule.rows
        and replace(bound(schedule.specification, schedule.grid, schedule.rows), rows=schedule.rows) != schedule
    ):
        raise ScheduleError(f"schedule {schedule.specification}: its steps are not those that its rows are bounded by")
    missing = schedule.cells - len(state.decided)
    if missing:
        raise ScheduleError(f"schedule {schedule.specification}: {missing} cells are never decided")
    return schedule


def is_line(schedule: Schedule) -> bool:
    """Whether every input stays, and sees only what stands before it: such a table can be run ahead on drafts."""
    kept = all(step.commit == step.width for step in schedule.steps)
    rising = all(before.rank < after.rank for step in schedule.steps for before, after in pairwise(step.inputs))
    window = 2 <= schedule.jacobi <= schedule.cells
    return kept and rising and window and not (schedule.queries or schedule.kept)


def capacity(schedule: Schedule) -> int:
    """The most cache slots that a schedule may use: two for each cell and condition token beside the zero slots."""
    return schedule.zero_slots + 2 * (schedule.cells + schedule.conditions)


class _State:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.decided = set(schedule.kept)
        self.live: set[int] = set()
        self.slot, self.capacity = schedule.zero_slots, capacity(schedule)
        self.last_position = schedule.cells + schedule.grid[0]  # a token may end each row

    def check(self, index: int, step: Step) -> None:
        problem = self._inputs(step) or self._cache(step) or self._targets(step)
        if problem:
            raise ScheduleError(f"schedule {self.schedule.specification}, step {index}: {problem}")

    def _inputs(self, step: Step) -> str | None:
        for given in step.inputs:
            if given.value < 0:
                return f"token {given.value} is negative"
            if given.source is Source.CELL and given.value not in self.decided:
                return f"reads cell {given.value}, which no earlier step decides"
            if given.source is Source.CONDITION and given.value >= self.schedule.conditions:
                return f"reads condition token {given.value} of {self.schedule.conditions}"
            if not 0 <= given.position <= self.last_position:
                return f"position {given.position} is outside 0..{self.last_position}"
            if not 0 <= given.rank <= MAX_CELLS:
                return f"rank {given.rank} is outside 0..{MAX_CELLS}"
            if not 0 <= given.holes <= self.schedule.zero_slots:
                return f"sees {given.holes} zero slots of {self.schedule.zero_slots}"
        return None if step.inputs else "has no inputs"

    def _cache(self, step: Step) -> str | None:
        if not 0 <= step.commit <= step.width:
            return f"keeps {step.commit} of {step.width} slots"
        if not (step.commit or step.targets):
            return "decides nothing and keeps nothing"
        if self.slot + step.width > self.capacity:
            return f"uses {self.slot + step.width} cache slots, more than the {self.capacity} that it may use"
        for slot in step.retire:
            if slot not in self.live:
                return f"retires slot {slot}, which is not live"
            self.live.remove(slot)
        self.live.update(range(self.slot, self.slot + step.commit))
        self.slot += step.commit
        return None

    def _targets(self, step: Step) -> str | None:
        if not (math.isfinite(step.guidance) and 0 <= step.guidance <= 1):
            return f"guidance weight {step.guidance} is outside 0..1"
        if len({target.row for target in step.targets}) != len(step.targets):
            return "samples one output row twice"
        for row, cell in step.targets:
            if not 0 <= row < self.schedule.outputs(step):
                return f"samples output {row} of {self.schedule.outputs(step)}"
            if not 0 <= cell < self.schedule.cells:
                return f"decides cell {cell} outside the grid"
            if cell in self.decided:
                return f"decides cell {cell} again"
            self.decided.add(cell)
        return None
