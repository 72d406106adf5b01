"""From a bundle's float32 step graph to the graphs that ONNX Runtime's CPU provider is given.

Norms and attention take the forms that the provider has its faster kernels for. For int8, weights become blocks of 8
bits, each with its own scale; the provider quantises activations itself, block by block in every row, so no calibration
is needed and no row of a batch changes another. All else stays float32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.engines.onnxruntime_attention import ease_attention
from arforge.engines.stored_values import stored_values
from arforge.runner.errors import EngineError

CONTRIB = "com.microsoft"
LARGEST, ZERO = 127, 128  # of a stored weight, which is unsigned: its largest value, and the zero point
BLOCKS = (256, 128, 64, 32, 16)  # inputs that share a scale: the first that divides a layer's inputs, else the last
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy level of that name


def lower_for_onnxruntime(path: Path, precision: str) -> ir.Model:
    """The graph at `path` for "fp32" or "int8", whose weights are new, to be kept in a file of their own.

    Raises EngineError for a graph that is none of a decoding step.
    """
    model = ir.load(path)
    model.opset_imports[CONTRIB] = 1
    fuse_norms(model)
    ease_attention(model)
    if precision == "int8":
        if not quantize_products(model):
            raise EngineError(f"{path} has no product with a stored matrix: it is not a step graph")
        take_along(model)
    RemoveUnusedNodesPass()(model)
    return model


def take_along(model: ir.Model) -> None:
    """Have the stored tensors that stay as they were written to the new graph's own file."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.LazyTensor(
                partial(copied, value.const_value), value.const_value.dtype, value.const_value.shape, name=value.name
            )


def copied(source: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(stored_values(source), name=source.name)


def fuse_norms(model: ir.Model) -> int:
    """Make one operator of a residual sum and the norm that reads it. Returns how many."""
    fused = 0
    for norm in [node for node in model.graph if node.op_type == "RMSNormalization"]:
        source, weight = norm.inputs[:2]
        add = source.producer() if source is not None else None
        if add is None or add.op_type != "Add" or norm.attributes.get_int("axis", -1) != -1:
            continue
        kind = ir.TensorType(ir.DataType.FLOAT)
        total, result = (ir.Value(name=f"{node.outputs[0].name}.fused", type=kind) for node in (add, norm))
        new = ir.Node(
            CONTRIB,
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, weight],
            [ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))],
            outputs=[result, ir.Value(name=""), ir.Value(name=""), total],
        )
        model.graph.insert_before(norm, new)
        for old, value in ((norm, result), (add, total)):
            old.outputs[0].replace_all_uses_with(value)
            model.graph.remove(old, safe=True)
        fused += 1
    return fused


def quantize_products(model: ir.Model) -> int:
    """Replace each product with a stored float32 matrix by one with 8-bit blocks of it. Returns how many."""
    quantized = 0
    for node in [node for node in model.graph if node.op_type == "MatMul"]:
        given, weight = node.inputs
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        inputs, outputs = weight.const_value.shape.numpy()
        block = next((size for size in BLOCKS if inputs % size == 0), BLOCKS[-1])
        stored = stored_blocks(model, weight, inputs, outputs, block)
        facts = {"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": INT8_ACTIVATIONS}
        result = ir.Value(name=f"{node.outputs[0].name}.int8", type=ir.TensorType(ir.DataType.FLOAT))
        attributes = [ir.AttrInt64(name, value) for name, value in facts.items()]
        new = ir.Node(CONTRIB, "MatMulNBits", [given, *stored], attributes, outputs=[result], name=node.name)
        model.graph.insert_before(node, new)
        node.outputs[0].replace_all_uses_with(result)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[str(weight.name)]
        quantized += 1
    return quantized


def stored_blocks(model: ir.Model, weight: ir.Value, inputs: int, outputs: int, block: int) -> list[ir.Value]:
    """The weight's blocks and their scales, made when they are written; those of an earlier use where there are."""
    count = -(-inputs // block)
    kinds = {
        f"{weight.name}.blocks": (0, ir.DataType.UINT8, (outputs, count, block)),
        f"{weight.name}.scales": (1, ir.DataType.FLOAT, (outputs, count)),
    }
    source = weight.const_value
    assert source is not None
    for name, (part, dtype, shape) in kinds.items():
        if name not in model.graph.initializers:
            made = ir.LazyTensor(partial(one_part, source, block, part), dtype, ir.Shape(shape), name=name)
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=made)
            model.graph.register_initializer(value)
    return [model.graph.initializers[name] for name in kinds]


def one_part(source: ir.TensorProtocol, block: int, part: int) -> ir.TensorProtocol:
    return ir.Tensor(quantized_blocks(stored_values(source), block)[part])


def quantized_blocks(weight: NDArray[np.float32], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks uint8 [outputs, blocks, block] and scales float32 [outputs, blocks] of a weight [inputs, outputs].

    Round to nearest, symmetric: a block's largest absolute value is 127 scales from the zero point. A last block
    that is not full is filled with zeros.
    """
    inputs, outputs = weight.shape
    padded = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    padded[:, :inputs] = weight.T
    blocks = padded.reshape(outputs, -1, block)
    scales = np.abs(blocks).max(axis=2) / np.float32(LARGEST)
    scales[scales == 0] = 1
    return (np.rint(blocks / scales[..., None]) + np.float32(ZERO)).astype(np.uint8), scales
