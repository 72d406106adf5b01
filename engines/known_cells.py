"""The step shapes that requests with known cells lead to, of schedules that can start from them.

Which cells are known changes nothing of the shapes, how many there are does: they are fed in steps as wide as the
engine's widest, and the cells that are left in groups of other sizes, so that widths and queries pair in other ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arforge.runner.bundle import Bundle
from arforge.runner.plan import step_shapes
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.table_graph import TableSizes, largest


@dataclass(frozen=True)
class KnownShapes:
    kinds: frozenset[tuple[int, int]]  # width and queries of a step
    slots: int
    sizes: TableSizes  # with room for all of them


def known_shapes(bundle: Bundle, names: Sequence[str], widths: Sequence[int]) -> KnownShapes:
    """For these schedules, with any number of known cells that leaves one to decide.

    Raises EngineError if a step decides more cells than the widest of `widths`.
    """
    kinds, slots, sizes = set[tuple[int, int]](), 0, []
    for name in names:
        for count in range(1, bundle.model.cells):
            schedule = kept_schedule(bundle, name, count)
            shapes = list(step_shapes(schedule, widths))
            kinds.update((width, queries) for _, width, queries in shapes)
            slots = max(slots, *(first + width for first, width, _ in shapes))
            sizes.append(TableSizes.of_calls([(width, queries) for _, width, queries in shapes], schedule))
    return KnownShapes(frozenset(kinds), slots, largest(sizes))


def most_asked(bundle: Bundle, names: Sequence[str]) -> int:
    """The most cells that a step decides, of these schedules with any number of known cells."""
    counts = range(1, bundle.model.cells)
    steps = (step for name in names for count in counts for step in kept_schedule(bundle, name, count).steps)
    return max((len(step.targets) for step in steps), default=1)


def kept_schedule(bundle: Bundle, name: str, count: int) -> Schedule:
    return bundle.schedule(name, kept=tuple(range(count)))
