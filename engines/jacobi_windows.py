"""How far next-token decoding had best run ahead on drafts, by whole images decoded alone and in a batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.runner import Runner
from arforge.runner.schedules.jacobi_windows import MeasuredWindow

TRIED = (2, 3, 4, 5, 6, 8, 12, 16)
BATCHES = (1, 8)
CELLS = 8 * 1024  # of the images of a batch, at most: larger grids are measured alone
ROUNDS = 5
SECONDS = 60.0  # after which no further round begins


@dataclass
class Taken:
    """What decoding one batch by one window took."""

    passes: Sequence[int] = ()  # calls until each image was done
    call_seconds: list[float] = field(default_factory=list)  # of each round, what is done between calls included

    @property
    def cost(self) -> float:
        """Seconds of a call; the first round, which warms up, does not count where there are others."""
        return statistics.median(self.call_seconds[1:] or self.call_seconds)


def windows_to_try(bundle: Bundle, engine: OnnxRuntimeEngine) -> list[int]:
    """Those that fit; none for a model that does not decode in raster order."""
    if bundle.model.order != "raster":
        return []
    most = min(bundle.model.cells, engine.exact_width or bundle.model.cells)
    return [window for window in TRIED if window <= most]


def batches_to_try(bundle: Bundle) -> list[int]:
    return [images for images in BATCHES if images == 1 or images * bundle.model.cells <= CELLS]


def try_windows(bundle: Bundle, engine: OnnxRuntimeEngine, windows: Sequence[int]) -> list[MeasuredWindow]:
    """Decode images with the bundle's own settings, and classes or prompts at random, alone and in batches.

    All windows and next-token decoding take turns, round after round, so that what else the machine does falls on all.
    """
    batches = batches_to_try(bundle)
    subjects = sample_subjects(bundle.model, max(batches))
    runner = Runner(bundle, engine)
    taken = {(images, window): Taken() for images in batches for window in (1, *windows)}
    start = time.perf_counter()
    for _ in range(1 + ROUNDS):
        for (images, window), one in taken.items():
            schedule = f"jacobi:{window}" if window > 1 else "ntp"
            given = subjects.take(range(images))
            found = runner.generate(**given, schedule=schedule, images=False, batch=images)
            one.passes = found.passes.tolist()
            one.call_seconds.append(found.seconds / found.steps)
        if time.perf_counter() - start > SECONDS:
            break
    drawn = {window: taken[max(batches), window].passes for window in windows}
    costs = {key: one.cost for key, one in taken.items()}
    return [
        one
        for images in batches
        for one in rated(bundle.model.cells, images, drawn, {w: costs[images, w] for w in (1, *windows)})
    ]


def rated(
    cells: int, images: int, passes: Mapping[int, Sequence[int]], seconds: Mapping[int, float]
) -> list[MeasuredWindow]:
    """Each window with its time for a batch of so many `images`, by calls and the seconds of one.

    `passes`: of images that were drawn, by window; a batch takes the calls of its slowest. `seconds`: of a call by
    window, 1 among them, which is next-token's.
    """
    found = []
    for window, counts in passes.items():
        groups = [counts[first : first + images] for first in range(0, len(counts), images)]
        calls = statistics.mean(max(group) for group in groups)
        found.append(MeasuredWindow(window, calls, calls * seconds[window] / (cells * seconds[1]), images))
    return found
