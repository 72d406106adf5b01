"""From a float32 step graph and ranges to int8 graphs with explicit QuantizeLinear and DequantizeLinear.

The rewriting is ONNX Runtime's own quantiser. Activations are int8, one scale a tensor; weights are stored as int8,
one scale an output; zero points are 0, as TensorRT wants them. All else, caches too, stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.calibration.layers import Layer
from arforge.export.noise import drawing_step
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.runner.bundle.facts import STEPS

PRECISION = "int8"
FOLDER = f"graphs/{PRECISION}"
WEIGHTS = "weights/model.weights"
LARGEST = 127  # -128 is left out, so that the range is symmetric
MARK = "onnx.infer"  # tells the quantiser that types are known; it would write the model to disk to infer them


def quantize(model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float]) -> onnx.ModelProto:
    """Quantise `layers`, whose activations reach to `limits`, in place; weights must be in memory.

    A layer that is left out reads what it read before, also where others of its input are quantised.
    """
    load_library()
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData

    nodes = {layer.node for layer in layers}
    inputs = {node.name: list(node.input) for node in model.graph.node if node.name not in nodes}
    ranges = {layer.activation: np.float32(limits[layer.activation]) for layer in layers}
    mark = model.metadata_props.add()
    mark.key, mark.value = MARK, "onnxruntime.quant"
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, {name: (-end, end) for name, end in ranges.items()}),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "DedicatedQDQPair": True,  # ONNX Runtime fuses no product that shares its quantizer
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
        },
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    del quantized.metadata_props[:]
    for node in quantized.graph.node:
        if node.name in inputs:
            node.input[:] = inputs[node.name]
    return quantized


def write_graphs(model: onnx.ModelProto, folder: Path, sampler: str = "uniform") -> list[str]:
    """Write `model`, a step-logits graph, and the step graph that draws; they share one weights file.

    Returns the graphs' names. `folder` must exist; the weights go to `WEIGHTS` below it.
    """
    (folder / WEIGHTS).parent.mkdir()
    full = ir.from_proto(model)
    full.graph.sort()  # the quantiser appends its nodes
    RemoveUnusedNodesPass()(full)
    ir.save(full, folder / "step-logits.onnx", external_data=WEIGHTS, size_threshold_bytes=1024)
    ir.save(drawing_step(ir.load(folder / "step-logits.onnx"), sampler), folder / f"{STEPS[sampler]}.onnx")
    return [STEPS[sampler], "step-logits"]
