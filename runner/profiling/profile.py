"""Measures schedules on an engine, step by step: time in the engine and beside it, bytes streamed, arithmetic.

Not covered: operators (`operator_times.py`), and drawing (`profile_page.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, RequestBuffers, StepBuffers
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.errors import Cancelled, RequestError
from arforge.runner.plan import Plan
from arforge.runner.profiling.sampling import Sampler, mean_watts, told
from arforge.runner.profiling.sensors import Sensors
from arforge.runner.request import Subjects
from arforge.runner.runner import Runner
from arforge.runner.schedules.jacobi_windows import settled
from arforge.runner.step_graph import cache_names, guided_rows

(FIRST_CACHE, _) = cache_names(1)
HIGH = (95, 99)  # percentiles beside the median


@dataclass(frozen=True)
class Settings:
    """What is measured of each schedule. Raises RequestError for numbers out of range."""

    images: int = 1
    guidance: float | None = None
    warm_ups: int = 1
    repeats: int = 3
    max_steps: int | None = None  # of a generation; None: all
    subjects: Subjects | None = None  # of the images; None: all classes, or random prompts

    def __post_init__(self) -> None:
        least = {"images": 1, "warm_ups": 0, "repeats": 1, "max_steps": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise RequestError(f"{name.replace('_', '-')} {value} is out of range: use {smallest} or more")


@dataclass(frozen=True)
class Call:
    """One call of the engine."""

    width: int
    queries: int
    live_slots: int  # of the schedule's own, that its inputs can see


@dataclass(frozen=True)
class ScheduleProfile:
    """One schedule's measurements; times in seconds, of `repeats` generations."""

    schedule: str
    calls: tuple[Call, ...]  # that were measured of a generation
    whole: bool  # whether those are all of it
    steps: int  # the plan's length: calls, unless images go their own pace
    done: tuple[int, ...]  # of these, how many all images had behind them after each call
    images: int
    rows: int
    total: NDArray[np.float64]  # (repeats, steps) from the end of a step to the end of the next
    engine: NDArray[np.float64]  # (repeats, steps) of these, inside the engine
    image_seconds: float | None  # tokens to pixels, a generation; None where it was not whole, or gives tokens only
    watts: float | None  # mean of what the device told during each generation
    sensors: dict[str, Any] | None  # and all that it told
    prompts: NDArray[np.float64]  # (repeats) from the call to the first step, whose caches hold the prompts then
    first: NDArray[np.float64]  # (repeats) from the call to the end of the first step
    prompt_slots: int  # of all rows, that hold a prompt


class TimedEngine:
    """An engine that notes when its preparation ended, the kind of each step, and how long it took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.widths, self.prefill_widths = engine.widths, engine.prefill_widths
        self.largest_batch, self.one_mask = engine.largest_batch, engine.one_mask
        self.exact_width, self.own_mask = engine.exact_width, engine.own_mask
        self.measured = engine.measured
        self.prepared = 0.0
        self.prompt_slots = 0  # of all rows, since then
        self.first_step: float | None = None  # when the first step of all ended
        self.seconds: list[float] = []
        self.kinds: list[tuple[int, int]] = []  # width and queries of each step

    @property
    def settings(self) -> RequestBuffers:
        return self._engine.settings

    @property
    def device(self) -> str:
        return self._engine.device

    def bandwidth(self) -> float:
        return self._engine.bandwidth()

    @property
    def cache_type(self) -> np.dtype[Any]:
        return self._engine.cache_type

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        self._engine.prepare(images, rows, slots, zero_slots, condition, lockstep)
        self.seconds.clear()
        self.kinds.clear()
        self.prompt_slots, self.prepared = 0, time.perf_counter()

    def has_low_caches(self, lockstep: int) -> bool:
        return self._engine.has_low_caches(lockstep)

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        return self._engine.buffers(width, queries)

    def run(self, width: int, queries: int = 0) -> None:
        start = time.perf_counter()
        self._engine.run(width, queries)
        end = time.perf_counter()
        self.seconds.append(end - start)
        self.kinds.append((width, queries))
        if self.first_step is None:
            self.first_step = end

    def loop(self, first: int, later: int, inputs: int) -> None:
        """The host makes the calls, so that each is timed."""

    def accept(self, plan: Plan) -> None:
        self._engine.accept(plan)

    def table_loop(self, plan: Plan) -> None:
        """As `loop`."""

    def cache(self, name: str) -> NDArray[Any]:
        return self._engine.cache(name)

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        self._engine.write_cache(name, row, first, values)
        if name == FIRST_CACHE:
            self.prompt_slots += values.shape[1]
        self.prepared = time.perf_counter()

    def close(self) -> None:
        self._engine.close()


class Clock:
    """Takes the time of each step's end, and stops a generation after so many steps."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.start = time.perf_counter()
        self.ends: list[float] = []
        self.done: list[int] = []  # steps of the schedule, after each
        self.whole = False

    def __call__(self, done: int, steps: int) -> None:
        self.ends.append(time.perf_counter())
        self.done.append(done)
        self.whole = done == steps

    def is_set(self) -> bool:
        return self.most is not None and len(self.ends) >= self.most


def profile_schedule(
    runner: Runner, engine: TimedEngine, schedule: str, settings: Settings, sensors: Sensors | None = None
) -> ScheduleProfile:
    """Measure `schedule` on `runner`, which runs on `engine`, and look at the sensors meanwhile, where given.

    Raises ScheduleError or EngineError if it does not fit the model or the engine.
    """
    guidance = runner.bundle.sampler.guidance if settings.guidance is None else settings.guidance
    total, inside, decoding, samplers, starts = [], [], [], [], []
    for index in range(settings.warm_ups + settings.repeats):
        with Sampler(sensors) as sampler:
            clock, image_seconds = generate_once(runner, schedule, settings)
        if index >= settings.warm_ups:
            total.append([after - before for before, after in pairwise([engine.prepared, *clock.ends])])
            inside.append(list(engine.seconds))
            decoding.append(image_seconds)
            samplers.append(sampler)
            starts.append((engine.prepared - clock.start, clock.ends[0] - clock.start))
    seconds = [taken for taken in decoding if taken is not None]
    plan = runner.plan(settled(schedule, engine.measured, settings.images))
    return ScheduleProfile(
        schedule=schedule,
        calls=calls_of(plan, engine.kinds, clock.done),
        whole=clock.whole,
        steps=plan.length,
        done=tuple(clock.done),
        images=settings.images,
        rows=guided_rows(settings.images, guided=guidance != 1),
        total=np.array(total),
        engine=np.array(inside),
        image_seconds=float(np.median(seconds)) if seconds else None,
        watts=mean_watts(samplers),
        sensors=told(samplers),
        prompts=np.array([prompts for prompts, _ in starts]),
        first=np.array([first for _, first in starts]),
        prompt_slots=engine.prompt_slots,
    )


def calls_of(plan: Plan, kinds: Sequence[tuple[int, int]], done: Sequence[int]) -> tuple[Call, ...]:
    """What calls saw: by the plan, or at an own pace what the slowest image has behind it, and the call's inputs.

    `done`: how much of the plan's length all images had behind them after each.
    """
    if plan.own_pace:
        fed = [0, *done] if plan.line is None else np.searchsorted(plan.line.steps, [0, *done]).tolist()
        return tuple(Call(*kind, before + kind[0]) for kind, before in zip(kinds, fed, strict=False))
    live = [int(step.mask.any(axis=0).sum()) for step in plan.steps[: len(kinds)]]
    return tuple(Call(*kind, slots) for kind, slots in zip(kinds, live, strict=True))


def generate_once(runner: Runner, schedule: str, settings: Settings) -> tuple[Clock, float | None]:
    """One generation, with the ends of its steps, and the seconds of its image decoding where it came to that."""
    model = runner.bundle.model
    subjects = settings.subjects or sample_subjects(model, settings.images, spread=False)
    clock = Clock(settings.max_steps)
    try:
        result = runner.generate(
            **subjects.take(range(settings.images)),
            schedule=schedule,
            guidance=settings.guidance,
            batch=settings.images,
            progress=clock,
            cancel=clock,
        )
    except Cancelled:
        return clock, None
    return clock, None if result.images is None else result.image_seconds


@dataclass(frozen=True)
class Traffic:
    """What a step must move and compute, whatever the engine; from the manifest and the plan."""

    weights: int  # bytes that every step reads: all but the table of embeddings
    slot: int  # bytes of one cache slot of one row, over all reads of a step
    weight_count: int

    @classmethod
    def of(cls, bundle: Bundle, precision: str, cache_type: np.dtype[Any], target: str | None = None) -> Traffic:
        """Every layer reads one cache, ARPG's later half the shared one. Engines in blocks keep embeddings as floats.

        `target`: whose engine it is, where that may have weights of its own.
        """
        model = bundle.model
        engines = [engine for engine in bundle.engines if (engine.target, engine.precision) == (target, precision)]
        files = [bundle.identity(engine).get("weights") for engine in engines]
        own = {graph.key: graph.weights for graph in bundle.graphs if graph.name == bundle.sampler.graph}
        files += [
            own.get((bundle.sampler.graph, precision)),
            own.get((bundle.sampler.graph, "fp32")),
        ]  # engines in blocks may read the second
        file = next(path for path in files if path)
        table = model.ids * model.dim
        size = 4 if precision not in ("fp16", "bf16") and model.stored_precision == "fp32" else 2
        return cls(
            weights=bundle.files[file].bytes - table * size,
            slot=2 * model.layers * model.kv_heads * model.head_size * cache_type.itemsize,
            weight_count=model.parameters - table,
        )

    def cache_bytes(self, step: Call, rows: int) -> int:
        """Bytes of keys and values that the step's inputs can see."""
        return rows * step.live_slots * self.slot

    def operations(self, step: Call, rows: int) -> int:
        """Two for each weight and token; where a model has queries, half of the layers see them in place of tokens."""
        tokens = (step.width + step.queries) / 2 if step.queries else step.width
        return int(2 * self.weight_count * rows * tokens)


def milliseconds(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Median and high percentiles."""
    scaled = 1000 * seconds
    high = {f"p{rank}": float(np.percentile(scaled, rank)) for rank in HIGH}
    return {"median": float(np.median(scaled)), **high}


def by_width(profile: ScheduleProfile) -> Iterator[dict[str, Any]]:
    """Times of the steps of each width, and number of queries where the model has them."""
    kinds = [(step.width, step.queries) for step in profile.calls]
    for (width, queries), count in sorted(Counter(kinds).items()):
        chosen = [index for index, kind in enumerate(kinds) if kind == (width, queries)]
        facts = {"width": width, **({"queries": queries} if queries else {}), "steps": count}
        yield {**facts, **milliseconds(profile.total[:, chosen])}


def summary(profile: ScheduleProfile, traffic: Traffic, bandwidth: float | None) -> dict[str, Any]:
    """The figures of one schedule, as `arforge profile --json` gives them; `bandwidth` in bytes per second."""
    steps = profile.calls
    seconds = float(np.median(profile.total.sum(axis=1)))  # of the measured steps of a generation
    inside = float(np.median(profile.engine.sum(axis=1)))
    prompts = profile.prompt_slots * traffic.slot
    cache = [traffic.cache_bytes(step, profile.rows) + prompts for step in steps]
    moved = len(steps) * traffic.weights + sum(cache)
    operations = sum(traffic.operations(step, profile.rows) for step in steps)
    whole = seconds + (profile.image_seconds or 0)
    return {
        "schedule": profile.schedule,
        "steps": profile.steps if not profile.whole else len(steps),
        "measured_steps": len(steps),
        "repeats": len(profile.total),
        "batch": profile.images,
        "rows": profile.rows,
        "ms_to_filled_caches": 1000 * float(np.median(profile.prompts)),
        "ms_to_first_token": 1000 * float(np.median(profile.first)),
        "prompt_slots": profile.prompt_slots / profile.rows,
        "ms_per_step": milliseconds(profile.total),
        "ms_per_step_by_width": list(by_width(profile)),
        "ms_per_image": 1000 * whole / profile.images if profile.whole else None,
        "ms_per_image_tokens": 1000 * seconds / profile.images if profile.whole else None,
        "ms_per_image_decoder": None
        if profile.image_seconds is None
        else 1000 * profile.image_seconds / profile.images,
        "images_per_second": profile.images / whole if profile.whole else None,
        "engine_share": inside / seconds,
        "runner_ms_per_step": 1000 * (seconds - inside) / len(steps),
        "weight_bytes_per_step": traffic.weights,
        "cache_bytes_per_step": sum(cache) / len(steps),
        "bytes_per_second": moved / seconds,
        "bandwidth_share": None if bandwidth is None else moved / seconds / bandwidth,
        "operations_per_second": operations / seconds,
        "watts": profile.watts,
        "joules_per_image": None
        if profile.watts is None or not profile.whole
        else profile.watts * (whole + float(np.median(profile.prompts))) / profile.images,
        "sensors": profile.sensors,
        "step_ms": (1000 * np.median(profile.total, axis=0)).tolist(),
        "step_widths": [step.width for step in steps],
        **ahead(profile),
    }


def ahead(profile: ScheduleProfile) -> dict[str, float]:
    """How a schedule got on whose images go their own pace: the slowest of them, where there are several."""
    gained = np.diff([0, *profile.done])
    if (gained == 1).all():
        return {}
    return {"steps_per_call": float(gained.mean()), "share_of_single_steps": float((gained == 1).mean())}


def against_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Steps and token time saved against the first schedule; their gap is overhead. Whole generations only."""
    first = rows[0]
    return [
        {
            "steps_saved": 1 - row["steps"] / first["steps"],
            "time_saved": 1 - row["ms_per_image_tokens"] / first["ms_per_image_tokens"],
        }
        for row in rows
    ]
