"""Compares a graph of lower precision with the float32 one on the real steps of a schedule, on ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import StepBuffers
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.lockstep import lockstep
from arforge.runner.plan import PlannedStep


@dataclass(frozen=True)
class Agreement:
    steps: int
    largest_error: float  # of guided logits, relative to the largest
    same_tokens: float  # share of decided cells with the same likeliest token


def compare_precision(bundle: Bundle, precision: str, schedule: str, max_steps: int) -> Agreement:
    """Run both graphs side by side, each on its own caches, on the likeliest tokens of the float32 one."""
    engines = [OnnxRuntimeEngine(bundle, name, graph="step-logits") for name in ("fp32", precision)]
    steps, largest, same, cells = 0, 0.0, 0, 0
    for done in lockstep(bundle, schedule, engines, [0, bundle.model.class_condition.classes - 1], max_steps):
        steps += 1
        wanted, found = (logits_of(step, buffers) for step, buffers in done)
        if wanted.size:
            largest = max(largest, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
            same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
            cells += wanted.shape[0] * wanted.shape[1]
    for engine in engines:
        engine.close()
    return Agreement(steps, largest, same / max(1, cells))


def logits_of(step: PlannedStep, buffers: StepBuffers) -> NDArray[np.float32]:
    """Guided logits of the cells that a step decides, (images, targets, vocabulary)."""
    assert buffers.logits is not None
    return buffers.logits[:, step.target_rows]
