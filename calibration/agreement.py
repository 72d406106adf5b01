"""What int8 does to the whole model: the tokens it prefers, step by step and over whole images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from arforge.calibration.requests import Requests, StageProgress, generate
from arforge.calibration.taps import PairedEngine
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.plan import make_plan


@dataclass(frozen=True)
class Int8Agreement:
    schedule: str
    tokens: int  # compared
    top1: float  # share of tokens where both find the same one most likely, given the same tokens so far
    logit_error: float  # |int8 - float32| / |float32 - its mean|, of guided logits, given the same tokens so far


class Comparison:
    """Compares the guided logits of every token that the steps of a schedule decide."""

    def __init__(self, bundle: Bundle, schedule: str) -> None:
        self.schedule = schedule
        self._steps = cycle(make_plan(bundle.schedule(schedule), widths=None).steps)  # anew for every batch
        self._same, self._tokens, self._noise, self._signal = 0, 0, 0.0, 0.0

    def __call__(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        rows = next(self._steps).target_rows
        expected, found = expected[:, rows], found[:, rows]
        self._same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        self._tokens += expected.shape[0] * expected.shape[1]
        self._noise += float(np.square(found - expected, dtype=np.float64).sum())
        self._signal += float(np.square(expected - expected.mean(-1, keepdims=True), dtype=np.float64).sum())

    def result(self) -> Int8Agreement:
        error = (self._noise / self._signal) ** 0.5 if self._signal else 0.0
        return Int8Agreement(self.schedule, self._tokens, self._same / max(1, self._tokens), error)


def teacher_forced(
    float32: Bundle, int8: Bundle, requests: Requests, what: str, progress: StageProgress, threads: int | None
) -> list[Int8Agreement]:
    """Run both graphs on the tokens that the float32 one samples, each on caches of its own."""

    def compare(schedule: str) -> Int8Agreement:
        comparison = Comparison(float32, schedule)
        follower = OnnxRuntimeEngine(int8, "int8", threads, graph="step-logits")
        engine = PairedEngine(float32, follower, comparison, threads)
        dict(generate(float32, engine, replace(requests, schedules=(schedule,)), what, progress))
        return comparison.result()

    return [compare(schedule) for schedule in requests.schedules]


def same_tokens(
    float32: Bundle, int8: Bundle, requests: Requests, progress: StageProgress, threads: int | None
) -> dict[str, float]:
    """By schedule, the share of equal tokens in images that each graph generates alone, greedily."""
    alone = [
        dict(generate(float32, OnnxRuntimeEngine(graphs, precision, threads), requests, what, progress, greedy=True))
        for graphs, precision, what in ((float32, "fp32", "fp32 images"), (int8, "int8", "int8 images"))
    ]
    return {schedule: float((alone[0][schedule] == alone[1][schedule]).mean()) for schedule in requests.schedules}
