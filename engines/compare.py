"""Compares a graph of lower precision with the float32 one on the real steps of a schedule, on ONNX Runtime."""

from __future__ import annotations

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_conditions
from arforge.runner.side_by_side import LogitAgreement, LogitComparison, logits_of, side_by_side


def compare_precision(bundle: Bundle, precision: str, schedule: str, max_steps: int) -> LogitAgreement:
    """Run both graphs side by side, each on its own caches, on the most likely tokens of the float32 one."""
    engines = [OnnxRuntimeEngine(bundle, name, graph="step-logits") for name in ("fp32", precision)]
    comparison = LogitComparison()
    for done in side_by_side(bundle, schedule, engines, sample_conditions(bundle, 2), max_steps):
        wanted, found = (logits_of(step, buffers) for step, buffers in done)
        comparison.add(wanted, found)
    for engine in engines:
        engine.close()
    return comparison.result()
