"""Compares a graph of lower precision with the float32 one on the real steps of a schedule, on ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arforge.runner.bundle import Bundle
from arforge.runner.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.plan import make_plan
from arforge.runner.runner import guided_rows


@dataclass(frozen=True)
class Agreement:
    steps: int
    largest_error: float  # of guided logits, relative to the largest
    same_tokens: float  # share of decided cells with the same likeliest token


def compare_precision(
    bundle: Bundle, precision: str, schedule: str, max_steps: int, guidance: float = 2.0
) -> Agreement:
    """Run both graphs side by side, each on its own caches, on the likeliest tokens of the float32 one."""
    engines = [OnnxRuntimeEngine(bundle, name, graph="step-logits") for name in ("fp32", precision)]
    plan = make_plan(bundle.schedule(schedule), widths=None)
    classes = np.array([0, bundle.model.classes - 1], dtype=np.int64)
    images, rows = len(classes), guided_rows(len(classes), guided=True)
    known = plan.known(bundle.model, classes, rows, np.zeros((images, bundle.model.cells), np.int64))
    for engine in engines:
        engine.prepare(images, rows, plan.slots, plan.schedule.zero_slots)
        engine.scalars.temperature[:] = 0
    largest, same, cells = 0.0, 0, 0
    for step in plan.steps[:max_steps]:
        logits = []
        for engine in engines:
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known)
            engine.scalars.guidance[:] = step.scale(guidance)
            engine.run(step.width, step.queries)
            assert buffers.logits is not None
            logits.append(buffers.logits[:, step.target_rows])
        if len(step.target_rows):
            wanted, found = logits
            largest = max(largest, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
            same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
            cells += images * len(step.target_rows)
        step.store(engines[0].buffers(step.width, step.queries), known)
    for engine in engines:
        engine.close()
    return Agreement(min(max_steps, len(plan.steps)), largest, same / max(1, cells))
