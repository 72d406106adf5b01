"""Runs a TensorRT engine beside ONNX Runtime on the real steps of a schedule, and over whole images. Needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.engines.tensorrt_graph import typed_graph, write_model
from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_conditions, sample_subjects
from arforge.runner.errors import VerificationError
from arforge.runner.runner import Runner
from arforge.runner.side_by_side import GUIDANCE, side_by_side, written

TOLERANCE = {
    "fp32": 1e-3,
    "fp16": 3e-2,
    "bf16": 2e-1,
    "int8": 2e-1,
    "int4": 3e-2,
}  # of keys and values, relative to the largest
ON_CPU = {"bf16": "fp32"}  # what ONNX Runtime's CPU provider runs in place of a precision that it lacks
COMPARED_STEPS = 16


@dataclass(frozen=True)
class EngineAgreement:
    schedule: str
    steps: int  # compared one by one
    largest_error: float  # of new keys and values, relative to the largest of their cache
    same_step_tokens: float  # share, given the same tokens so far
    same_image_tokens: float  # share, over whole images that each side decodes alone, greedily


def compare_engine(
    bundle: Bundle, identity: Mapping[str, Any], library: Library, schedule: str, gpu: Gpu | None = None
) -> EngineAgreement:
    """Raises VerificationError if keys or values of a step differ by more than the precision explains.

    Tokens that differ are counted, not refused: another rounding can tip a near tie.
    """
    precision = identity["precision"]
    reference = reference_engine(bundle, precision, identity["target"])
    engine = TensorRTEngine(bundle, identity, library, gpu or Gpu())
    with Runner(bundle, reference) as expected, Runner(bundle, engine) as found:
        steps, same, largest = step_by_step(bundle, schedule, reference, engine, TOLERANCE[precision])
        images = min(2, engine.largest_batch or 2)
        request: dict[str, Any] = {"schedule": schedule, "guidance": GUIDANCE, "greedy": True}
        request |= sample_subjects(bundle.model, images).take(range(images))
        tokens = [runner.generate(**request).tokens for runner in (expected, found)]
    return EngineAgreement(schedule, steps, largest, same, float((tokens[0] == tokens[1]).mean()))


def reference_engine(bundle: Bundle, precision: str, target: str) -> OnnxRuntimeEngine:
    """The graph of that precision on ONNX Runtime; with weights of 4 bits, which no bundle holds for it, made anew."""
    if precision != "int4":
        return OnnxRuntimeEngine(bundle, ON_CPU.get(precision, precision))
    with TemporaryDirectory() as folder:
        path = write_model(typed_graph(bundle, precision, target), Path(folder), "step")[0]
        return OnnxRuntimeEngine(bundle, precision, path=path)


def step_by_step(
    bundle: Bundle, schedule: str, reference: OnnxRuntimeEngine, engine: TensorRTEngine, tolerance: float
) -> tuple[int, float, float]:
    """Both engines on the tokens that the reference prefers: steps, the share of same tokens, and the largest error."""
    steps, same, cells, largest = 0, 0, 0, 0.0
    for done in side_by_side(bundle, schedule, [reference, engine], sample_conditions(bundle, 1), COMPARED_STEPS):
        first = done[0][0]  # not padded
        outputs = [
            {name: comparable(array) for name, array in written(bundle, one, first).items()}
            for one in (reference, engine)
        ]
        tokens = [buffers.next_tokens[:, step.target_rows] for step, buffers in done]
        same, cells = same + int((tokens[0] == tokens[1]).sum()), cells + tokens[0].size
        largest = max(largest, compare_outputs(outputs[0], outputs[1], tolerance, steps, engine))
        steps += 1
    return steps, same / max(1, cells), largest


def compare_outputs(
    wanted: dict[str, NDArray[Any]],
    found: dict[str, NDArray[Any]],
    tolerance: float,
    index: int,
    engine: TensorRTEngine,
) -> float:
    """The largest error of a step's keys and values; Polygraphy's comparator, with a tolerance for each."""
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    scales = {name: float(np.abs(array).max()) or 1.0 for name, array in wanted.items()}
    compare = SimpleCompareFunc(
        rtol=0.0, atol={name: tolerance * scale for name, scale in scales.items()}, check_error_stat="max"
    )
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        results = compare(IterationResult(wanted, runner_name="onnxruntime"), IterationResult(found, runner_name="gpu"))
    errors: dict[str, float] = {name: result.max_absdiff / scales[name] for name, result in results.items()}
    worst = max(errors, key=lambda name: errors[name])
    if set(results) != set(wanted) or not all(results.values()):
        raise VerificationError(
            f"{engine.device}: step {index} writes {worst} with an error of {errors[worst]:.1e} of its largest, "
            f"allowed is {tolerance:.0e}: rebuild the engine, with --attention decomposed or a higher precision"
        )
    return errors[worst]


def comparable(array: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; bfloat16, which numpy lacks, has the upper half of its bits."""
    if array.dtype.kind == "V":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
