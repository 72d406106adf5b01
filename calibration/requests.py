"""What a calibration generates: the bundle's own schedules on spread classes and counted seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle
from arforge.runner.errors import CalibrationError
from arforge.runner.runner import Runner

StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done and the steps in all."""


@dataclass(frozen=True)
class Requests:
    """One image for each class and seed, by every schedule; widths are the schedules' own, so nothing is padded."""

    schedules: tuple[str, ...]
    classes: tuple[int, ...]
    seeds: tuple[int, ...]
    guidance: float
    batch: int

    def __post_init__(self) -> None:
        if not self.classes:
            raise CalibrationError("no samples: calibration needs at least one image")


def spread(
    bundle: Bundle, schedules: Sequence[str], samples: int, seed: int, guidance: float | None, batch: int
) -> Requests:
    """`samples` images a schedule (none given: every stored one), their classes as far apart as they can be.

    Seeds count up from `seed`. Raises ScheduleError for a schedule that does not fit the model.
    """
    chosen = dict.fromkeys(bundle.schedule(text).specification for text in schedules or bundle.specifications)
    known = bundle.model.class_condition.classes
    return Requests(
        schedules=tuple(chosen),
        classes=tuple(index * known // samples if samples < known else index % known for index in range(samples)),
        seeds=tuple(range(seed, seed + samples)),
        guidance=bundle.sampler.guidance if guidance is None else guidance,
        batch=batch,
    )


def held_out(requests: Requests, samples: int, classes: int) -> Requests:
    """Requests that share no seed with these; classes go on from theirs by half their distance."""
    first, shift = requests.seeds[-1] + 1, max(1, classes // (2 * len(requests.classes)))
    chosen = [requests.classes[index % len(requests.classes)] for index in range(samples)]
    return replace(
        requests,
        classes=tuple((label + shift) % classes for label in chosen),
        seeds=tuple(range(first, first + samples)),
    )


def generate(
    bundle: Bundle, engine: Engine, requests: Requests, what: str, progress: StageProgress, *, greedy: bool = False
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Run every request; yields each schedule with its tokens, int64 [images, cells], and closes the engine.

    Sampling is the bundle's own, or greedy. Images are not decoded.
    """
    with Runner(replace(bundle, image_tokenizer=None), engine) as runner:
        for schedule in requests.schedules:
            result = runner.generate(
                requests.classes,
                requests.seeds,
                schedule,
                guidance=requests.guidance,
                greedy=greedy,
                batch=requests.batch,
                progress=lambda done, steps, name=schedule: progress(f"{what}, {name}", done, steps),  # type: ignore[misc]
            )
            yield schedule, result.tokens
