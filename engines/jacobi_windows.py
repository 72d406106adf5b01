"""How far next-token decoding had best run ahead on drafts, by the calls it takes and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.runner import Runner

TRIED = (2, 3, 4, 5, 6, 8, 12, 16)
IMAGES, CELLS = 8, 1024  # that calls are counted on: at most so many, and one at least


@dataclass(frozen=True)
class Window:
    """One number of inputs of a call."""

    inputs: int
    calls: float  # mean of an image
    time: float  # of an image's, relative to next-token decoding, if calls take what `measure` found

    def to_json(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "calls": round(self.calls, 2), "time": round(self.time, 3)}


def windows_to_try(bundle: Bundle, engine: OnnxRuntimeEngine) -> list[int]:
    """Those that fit; none for a model that does not decode in raster order."""
    if bundle.model.order != "raster":
        return []
    most = min(bundle.model.cells, engine.exact_width or bundle.model.cells)
    return [window for window in TRIED if window <= most]


def count_calls(bundle: Bundle, engine: OnnxRuntimeEngine, windows: list[int]) -> dict[int, float]:
    """Mean calls of an image by window, with the bundle's own settings and classes or prompts at random."""
    images = max(1, min(IMAGES, CELLS // bundle.model.cells))
    subjects = sample_subjects(bundle.model, images).take(range(images))
    runner = Runner(bundle, engine)
    return {
        window: float(runner.generate(**subjects, schedule=f"jacobi:{window}", images=False).passes.mean())
        for window in windows
    }


def rated(cells: int, calls: Mapping[int, float], seconds: Mapping[int, float]) -> list[Window]:
    """Each window with its time; `seconds` of a call by width, 1 among them, which the first call of an image has."""
    alone = cells * seconds[1]
    return [
        Window(window, count, (seconds[1] + (count - 1) * seconds[window]) / alone) for window, count in calls.items()
    ]
