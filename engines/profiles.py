"""Which step shapes a TensorRT engine is built for: an optimisation profile for each, with min = opt = max.

Rule of the default widths: the numbers of tokens that the schedules use in a step are rounded up to 1, 2, 3, 4, 6, 8,
12, 16, 24, …, at most to the largest one used. For models with queries, whose steps pair a number of tokens with one of
cells, the numbers of both are rounded up to powers of two. So profiles grow with the logarithm of the widest step.
The cache gets the slots that the most demanding schedule needs with its steps padded so, rounded up to a multiple
of 8, which is what matrix units want.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from arforge.runner.bundle import Bundle
from arforge.runner.errors import EngineError
from arforge.runner.plan import make_plan
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.step_graph import guided_rows, lowered_step

SLOT_MULTIPLE = 8
MAX_PROFILES = 256
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, order=True)
class Profile:
    images: int
    width: int
    queries: int  # 0 where the model has none

    @property
    def rows(self) -> int:
        return guided_rows(self.images, guided=True)


@dataclass(frozen=True)
class Profiles:
    widths: tuple[int, ...]
    slots: int
    profiles: tuple[Profile, ...]


def plan_profiles(bundle: Bundle, names: Sequence[str], images: Sequence[int], widths: Sequence[int]) -> Profiles:
    """The shapes for these schedules (none: all that the bundle stores), batches and widths (none: by the rule).

    Raises ScheduleError for a schedule that the model cannot run, EngineError for numbers that do not fit.
    """
    for what, numbers in (("images", images), ("widths", widths)):
        if any(number < 1 for number in numbers):
            raise EngineError(f"{what} {list(numbers)} must all be at least 1")
    schedules = [bundle.schedule(name) for name in names or bundle.specifications]
    chosen = tuple(sorted(set(widths))) or default_widths(used(schedules), halves=not bundle.model.queries)
    for schedule in schedules:
        if max(used([schedule])) > chosen[-1]:
            raise EngineError(
                f"schedule {schedule.specification} needs steps of {max(used([schedule]))}, the widest asked for is "
                f"{chosen[-1]}: add --width {max(used([schedule]))}"
            )
    plans = [make_plan(schedule, chosen) for schedule in schedules]
    kinds = {(step.width, step.queries) for plan in plans for step in plan.steps}
    profiles = sorted(Profile(count, *kind) for count in set(images) for kind in kinds)
    if len(profiles) > MAX_PROFILES:
        raise EngineError(f"{len(profiles)} profiles are more than {MAX_PROFILES}: name fewer schedules or widths")
    slots = max(plan.slots for plan in plans)
    return Profiles(chosen, -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE, tuple(profiles))


def used(schedules: Iterable[Schedule]) -> set[int]:
    """The numbers of inputs and of queries in the schedules' steps."""
    counts = {step.width for schedule in schedules for step in schedule.steps}
    return counts | {len(step.targets) for schedule in schedules if schedule.queries for step in schedule.steps}


def default_widths(counts: Iterable[int], halves: bool) -> tuple[int, ...]:
    """Numbers of tokens, each rounded up by the module's rule; `halves`: also to what lies halfway between powers."""
    exact = set(counts)
    return tuple(sorted({min(rounded(count, halves), max(exact)) for count in exact}))


def rounded(count: int, halves: bool) -> int:
    """The next power of two, or with `halves` of 1, 2, 3, 4, 6, 8, 12, 16, …"""
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if halves and power >= 4 and count <= 3 * power // 4 else power


def shapes(bundle: Bundle, profile: Profile, slots: int) -> Shapes:
    """The shape of every input of a step graph in that profile, as the graph is lowered for TensorRT."""
    dimensions = {**asdict(profile), "rows": profile.rows, "slots": slots}
    taken = lowered_step(bundle.model, cache_type="float32", filters=True).inputs
    return {tensor.name: tensor.sizes(dimensions) for tensor in taken}
