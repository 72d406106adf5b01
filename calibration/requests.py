"""What a calibration generates: the bundle's own schedules on spread classes, or given prompts, and counted seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition, ModelFacts
from arforge.runner.conditioner import Conditioner
from arforge.runner.errors import CalibrationError
from arforge.runner.request import Request, Subjects
from arforge.runner.runner import Runner
from arforge.runner.schedules.specification import as_it_stands

StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done and the steps in all."""


@dataclass(frozen=True)
class Requests:
    """One image a seed, by every schedule; widths are the schedules' own, so nothing is padded."""

    schedules: tuple[str, ...]
    subjects: Subjects
    seeds: tuple[int, ...]
    guidance: float
    batch: int

    def to_json(self) -> dict[str, Any]:
        """As a calibration's record holds it; of features their number and hash."""
        used = replace(self.subjects, values=self.subjects.values[: len(self.seeds)])
        said: dict[str, Any] = {name: value for name, value in used.settings.items() if value}
        if used.by == "features":
            said["features_sha256"] = hashlib.sha256(b"".join(one.tobytes() for one in used.values)).hexdigest()
        facts = {"seeds": self.seeds, "guidance": self.guidance, "batch": self.batch}
        return {"schedules": self.schedules, **used.to_json(), **said, **facts}


def spread(
    bundle: Bundle,
    schedules: Sequence[str],
    samples: int,
    seed: int,
    guidance: float | None,
    batch: int,
    subjects: Subjects | None = None,
) -> Requests:
    """`samples` images a schedule (none given: every stored one), going round `subjects`.

    None of them: classes, as far apart as they can be. Seeds count up from `seed`. Raises ScheduleError for a schedule
    that does not fit the model, CalibrationError for a model that takes prompts where none are given.
    """
    named = schedules or bundle.specifications
    chosen = dict.fromkeys(bundle.schedule(as_it_stands(text)).specification for text in named)
    if samples < 1:
        raise CalibrationError("no samples: calibration needs at least one image")
    return Requests(
        schedules=tuple(chosen),
        subjects=subjects or spread_classes(bundle.model, samples),
        seeds=tuple(range(seed, seed + samples)),
        guidance=bundle.sampler.guidance if guidance is None else guidance,
        batch=batch,
    )


def spread_classes(model: ModelFacts, samples: int) -> Subjects:
    """So many classes, as far apart as they can be. Raises CalibrationError for a model that takes prompts."""
    if not isinstance(model.condition, ClassCondition):
        raise CalibrationError(
            f"this {model.family} model takes prompts, and from made-up ones its ranges would be others: give some of "
            "the kind that it is to draw (--prompt, --prompts or --features; in Python, CalibrationJob's subjects)"
        )
    known = model.condition.classes
    return Subjects("classes", tuple(i * known // samples if samples < known else i % known for i in range(samples)))


def held_out(requests: Requests, samples: int, model: ModelFacts) -> Requests:
    """Requests that share no seed with these.

    Classes go on from theirs by half their distance. Prompts, which are given, go on behind the last one used; where
    all are used they are turned by half, so that none meets its seeds again.
    """
    first, used = requests.seeds[-1] + 1, requests.subjects
    values = used.values
    if used.by == "classes" and all(isinstance(label, int) for label in values):
        classes = model.class_condition.classes
        shift = max(1, classes // (2 * len(values)))
        others = tuple((values[index % len(values)] + shift) % classes for index in range(samples))
    else:
        turn = len(requests.seeds) % len(values) or len(values) // 2
        others = values[turn:] + values[:turn]
    return replace(requests, subjects=replace(used, values=others), seeds=tuple(range(first, first + samples)))


def encoded(bundle: Bundle, requests: Requests, threads: int | None = None) -> Requests:
    """Requests of the same images whose prompts are features, so that each is encoded once and not in every pass."""
    used = requests.subjects
    if used.by != "prompts" or not isinstance(bundle.model.condition, FeaturesCondition):
        return requests
    conditioner = Conditioner(bundle, threads)
    try:
        features = conditioner.features(Request(**used.take(range(len(used.values)))))
    finally:
        conditioner.close()
    return replace(requests, subjects=Subjects("features", tuple(features)))


def generate(
    bundle: Bundle, engine: Engine, requests: Requests, what: str, progress: StageProgress, *, greedy: bool = False
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Run every request; yields each schedule with its tokens, int64 [images, cells], and closes the engine.

    Sampling is the bundle's own, or greedy. Images are not decoded.
    """
    with Runner(replace(bundle, image_tokenizer=None), engine) as runner:
        for schedule in requests.schedules:
            result = runner.generate(
                **requests.subjects.take(range(len(requests.seeds))),
                seeds=requests.seeds,
                schedule=schedule,
                guidance=requests.guidance,
                greedy=greedy,
                batch=requests.batch,
                progress=lambda done, steps, name=schedule: progress(f"{what}, {name}", done, steps),  # type: ignore[misc]
            )
            yield schedule, result.tokens
