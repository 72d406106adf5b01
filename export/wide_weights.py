"""A graph with the values of its weights in float32, however they are stored: 16 bits, or blocks with scales."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from arforge.export.quantization import dequantized
from arforge.export.stored_values import stored_values

LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
BITS = {ir.DataType.UINT8: 8, ir.DataType.UINT4: 4}


def load_wide(path: Path) -> onnx.ModelProto:
    """The graph at `path` so, its weights in memory where they are stored otherwise, else in their file."""
    model = ir.load(path)
    if not widen(model):
        return onnx.load(path, load_external_data=False)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor | ir.ExternalTensor):
            value.const_value = ir.Tensor(stored_values(value.const_value), name=value.name)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def widen(model: ir.Model, blocks: Container[int] = (8, 4)) -> int:
    """Give each weight that is cast or dequantised its float32 values, made when they are read. Returns how many.

    Those in blocks of other bits than `blocks` stay so.
    """
    widened = 0
    for weight in list(model.graph.initializers.values()):
        uses = [use.node for use in weight.uses()]
        casts = [cast_node for node in uses if weight.dtype in LOW and (cast_node := cast_of(node)) is not None]
        if casts and len(casts) == len(uses) and weight.const_value is not None:
            for node, cast_node in zip(uses, casts, strict=True):
                assert cast_node.inputs[0] is not None
                name = cast_node.outputs[0].name
                cast_node.outputs[0].replace_all_uses_with(cast_node.inputs[0], replace_graph_outputs=True)
                model.graph.remove(cast_node, safe=True)
                if node is not cast_node:
                    node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT  # the graph's output, maybe
            replace_values(weight, ir.Shape(weight.const_value.shape.numpy()), partial(cast, weight.const_value))
            widened += 1
        elif weight.dtype in BITS and uses and all(node.op_type == "DequantizeLinear" for node in uses):
            if BITS[weight.dtype] not in blocks:
                continue
            if any(node.inputs[0] is not weight or "block_size" not in node.attributes for node in uses):
                continue  # zero points, or what `arforge calibrate` made
            widen_blocks(model, weight, uses[0])
            widened += 1
    return widened


def cast_of(node: ir.Node) -> ir.Node | None:
    """By who reads a stored matrix, what makes float32 of it, or of the rows gathered of it; None if nothing does."""
    if node.op_type == "Gather":
        readers = [use.node for use in node.outputs[0].uses()]
        if len(readers) != 1:
            return None
        node = readers[0]
    return node if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT else None


def widen_blocks(model: ir.Model, codes: ir.Value, node: ir.Node) -> None:
    """Put the product of codes and scales, transposed, in the place of a DequantizeLinear and its Transpose."""
    scales, tensor = node.inputs[1], codes.const_value
    assert scales is not None
    assert scales.const_value is not None
    assert tensor is not None
    assert codes.dtype is not None
    for use in list(node.outputs[0].uses()):
        assert use.node.op_type == "Transpose"
        use.node.outputs[0].replace_all_uses_with(codes)
        model.graph.remove(use.node, safe=True)
    made = partial(factor, tensor, scales.const_value, BITS[codes.dtype])
    spare = node.inputs[1:]
    model.graph.remove(node, safe=True)
    for value in spare:
        if value is not None and not value.uses():
            del model.graph.initializers[str(value.name)]
    outputs, inputs = tensor.shape.numpy()
    replace_values(codes, ir.Shape([inputs, outputs]), made)


def replace_values(weight: ir.Value, shape: ir.Shape, made: Callable[[], ir.TensorProtocol]) -> None:
    weight.const_value = ir.LazyTensor(made, ir.DataType.FLOAT, shape, name=weight.name)
    weight.dtype, weight.shape = ir.DataType.FLOAT, shape


def cast(source: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(stored_values(source).astype(np.float32))


def factor(codes: ir.TensorProtocol, scales: ir.TensorProtocol, bits: int) -> ir.TensorProtocol:
    values = dequantized(stored_values(codes).astype(np.uint8), stored_values(scales), bits)
    return ir.Tensor(np.ascontiguousarray(values.T))
