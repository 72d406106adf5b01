"""Which step shapes a TensorRT engine is built for: an optimisation profile for each, with min = opt = max.

Rule of the default widths: the numbers of tokens that the schedules use in a step are rounded up to 1, 2, 3, 4, 6, 8,
12, 16, 24, …, at most to the largest one used. For models with queries, whose steps pair a number of tokens with one of
cells, the numbers of both are rounded up to powers of two. So profiles grow with the logarithm of the widest step.
The cache gets the slots that the most demanding schedule needs with its steps padded so, rounded up to a multiple
of 8, which is what matrix units want.

Of a model that takes prompts, steps read one row of a prompt, the last. The rows before it pass in profiles of their
own, at the smallest batch, whose condition has room for the longest prompt; by the rule one width, up to 128 tokens,
so that a prompt passes in few runs. Their slots count as well: the longest prompt's before those of a schedule.

Schedules that can start from known cells get the shapes and slots of all requests that have some, unless they are not
wanted: about as many profiles again (`known_cells.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from arforge.engines.known_cells import known_shapes, most_asked
from arforge.runner.bundle import Bundle, ClassCondition, ModelFacts
from arforge.runner.conditions import prompt_slots
from arforge.runner.errors import EngineError
from arforge.runner.plan import make_plan
from arforge.runner.prefill import CHUNK
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.schedules.specification import keeps
from arforge.runner.schedules.visibility import sees_all_before
from arforge.runner.step_graph import conditioned, guided_rows, lowered_step, row_sizes
from arforge.runner.table_graph import TableSizes

SLOT_MULTIPLE = 8
MAX_PROFILES = 256
LARGEST_TENSOR = 2**31 - 1  # numbers
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, order=True)
class Profile:
    images: int
    width: int
    queries: int  # 0 where the model has none
    condition: int = 0  # rows of a prompt that it reads; 0 where the model takes none

    @property
    def rows(self) -> int:
        return guided_rows(self.images, guided=True)


@dataclass(frozen=True)
class Profiles:
    widths: tuple[int, ...]  # of steps
    slots: int
    profiles: tuple[Profile, ...]
    prefill_widths: tuple[int, ...] = ()  # of passes of prompts; empty where the model takes none
    own_mask: bool = False  # whether the graph makes its mask, since all schedules see all that is before
    known: TableSizes | None = None  # of the largest plan with known cells; None where none is built for


def plan_profiles(
    bundle: Bundle,
    names: Sequence[str],
    images: Sequence[int],
    widths: Sequence[int],
    prefill_widths: Sequence[int] = (),
    *,
    known: bool = True,
) -> Profiles:
    """The shapes for these schedules (none: all that the bundle stores), batches and widths (none: by the rule).

    `known`: with those of known cells, where schedules can start from them.
    Raises ScheduleError for a schedule that the model cannot run, EngineError for numbers that do not fit.
    """
    for what, numbers in (("images", images), ("widths", widths), ("prefill widths", prefill_widths)):
        if any(number < 1 for number in numbers):
            raise EngineError(f"{what} {list(numbers)} must all be at least 1")
    passes = prompt_widths(bundle.model, prefill_widths)
    most = longest_prompt(bundle.model)
    schedules = [bundle.schedule(name) for name in names or bundle.specifications]
    keeping = [name for name in names or bundle.specifications if keeps(name)]
    if not known and not keeping:
        raise EngineError("none of these schedules can start from known cells: leave --no-known out")
    counts = used(schedules)
    asked = most_asked(bundle, keeping) if known and keeping else 0
    if asked > max(counts):
        counts.add(asked)
    chosen = tuple(sorted(set(widths))) or default_widths(counts, halves=not bundle.model.queries)
    for schedule in schedules:
        if max(used([schedule])) > chosen[-1]:
            raise EngineError(
                f"schedule {schedule.specification} needs steps of {max(used([schedule]))}, the widest asked for is "
                f"{chosen[-1]}: add --width {max(used([schedule]))}"
            )
    plans = [make_plan(schedule, chosen) for schedule in schedules]
    kinds = {kind for plan in plans for kind in plan.kinds}
    from_known = known_shapes(bundle, keeping, chosen) if known and keeping else None
    if from_known:
        kinds |= from_known.kinds
    read = 1 if conditioned(bundle.model) else 0
    profiles = sorted(
        {
            *(Profile(count, *kind, read) for count in set(images) for kind in kinds),
            *(Profile(min(images), width, 0, most) for width in passes),
        }
    )
    if len(profiles) > MAX_PROFILES:
        without = ", or leave known cells out with --no-known" if from_known else ""
        raise EngineError(
            f"{len(profiles)} profiles are more than {MAX_PROFILES}: name fewer schedules or widths{without}"
        )
    slots = max(plan.slots for plan in plans) + prompt_slots(bundle.model, most)
    slots = max(slots, from_known.slots if from_known else 0)
    if passes:
        slots = max(slots, -(-most // passes[-1]) * passes[-1])  # of a prompt alone, padded
    ahead = any(schedule.jacobi for schedule in schedules)  # which has images at places of their own
    own_mask = ahead and not conditioned(bundle.model) and all(map(sees_all_before, schedules))
    rounded_up = -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE
    found = Profiles(chosen, rounded_up, tuple(profiles), passes, own_mask, from_known.sizes if from_known else None)
    check_sizes(bundle, found)
    return found


def check_sizes(bundle: Bundle, profiles: Profiles) -> None:
    """Raises EngineError for an input that no TensorRT tensor can be, as of a manifest that claims huge prompts."""
    most = longest_prompt(bundle.model)
    for profile in profiles.profiles:
        for name, shape in shapes(bundle, profile, profiles.slots).items():
            if math.prod(shape) > LARGEST_TENSOR:
                why = f" (prompts have up to {most + 1} tokens)" if most else ""
                raise EngineError(
                    f"{name} would be {list(shape)}{why}, more than the {LARGEST_TENSOR} numbers that a TensorRT "
                    "tensor holds: build for fewer --images or shorter schedules"
                )


def longest_prompt(model: ModelFacts) -> int:
    """Rows of the longest prompt before its last, which pass before the first step; 0 where the model takes none."""
    return 0 if isinstance(model.condition, ClassCondition) else model.condition.slots - 1


def prompt_widths(model: ModelFacts, asked: Sequence[int]) -> tuple[int, ...]:
    """How many tokens of a prompt pass at once: as asked, or by the rule. Raises EngineError for what does not fit."""
    most = longest_prompt(model)
    if asked and not conditioned(model):
        raise EngineError(f"this {model.family} model takes classes, not prompts: leave --prefill-width out")
    widest = max(asked, default=1)
    if widest > model.position_rows:
        raise EngineError(f"prefill width {widest} is more than the model's {model.position_rows} positions")
    if not most:
        return ()
    return tuple(sorted(set(asked))) or (min(rounded(most, halves=True), CHUNK, model.position_rows),)


def used(schedules: Iterable[Schedule]) -> set[int]:
    """The numbers of inputs and of queries in the schedules' steps."""
    counts = {width for schedule in schedules for width in schedule.widths}
    return counts | {len(step.targets) for schedule in schedules if schedule.queries for step in schedule.steps}


def default_widths(counts: Iterable[int], halves: bool) -> tuple[int, ...]:
    """Numbers of tokens, each rounded up by the module's rule; `halves`: also to what lies halfway between powers."""
    exact = set(counts)
    return tuple(sorted({min(rounded(count, halves), max(exact)) for count in exact}))


def rounded(count: int, halves: bool) -> int:
    """The next power of two, or with `halves` of 1, 2, 3, 4, 6, 8, 12, 16, …"""
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if halves and power >= 4 and count <= 3 * power // 4 else power


def shapes(bundle: Bundle, profile: Profile, slots: int, *, views: bool = False) -> Shapes:
    """The shape of every input of a step graph in that profile, as the graph is lowered for TensorRT."""
    dimensions = {**asdict(profile), **row_sizes(bundle.model, profile.images), "slots": slots}
    taken = lowered_step(bundle.model, "float32", filters=True, graph=bundle.sampler.graph, views=views).inputs
    return {tensor.name: tensor.sizes(dimensions) for tensor in taken}
