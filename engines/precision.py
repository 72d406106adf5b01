"""Lowers a float32 step graph to float16 or bfloat16.

TensorRT 11 is strongly typed: precision is what the graph's types say, so this is where an engine's precision is made.
"""

from __future__ import annotations

from collections.abc import Container

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.export.stored_values import stored_values
from arforge.runner.errors import EngineError

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST = {
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: float(np.array(0x7F7F, np.uint16).view(ml_dtypes.bfloat16)),
}
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
PROMPT = "condition"  # the input that holds rows of a prompt
INSIDE = {"Attention": "softmax_precision", "RMSNormalization": "stash_type"}


def lower_precision(model: ir.Model, dtype: ir.DataType) -> None:
    """Give the decoder of a float32 step graph the type `dtype`, in place; the sampler keeps float32.

    - The decoder is every node whose values a matrix product needs, and the products; what follows is the sampler.
    - Caches, weights, constants and results of the decoder become `dtype`; integers and booleans stay.
    - Where the sampler reads one of them (the logits), it is cast to float32 once. Rows of a prompt come as float32 and
      are cast where they come in. There is no other cast.
    - RMSNormalization and the softmax of Attention keep float32 inside, by their own attributes.
    - Scales of quantizers stay float32, since a weight's scale can be below what float16 holds with full precision;
      their results are `dtype`.

    Weights are cast when they are written. Raises EngineError for a graph that is no step graph; reading a weight
    that `dtype` cannot hold raises it too.
    """
    decoder = decoder_nodes(model.graph)
    scales = {node.inputs[1] for node in decoder if node.op_type in QUANTIZERS}
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        inside = any(use.node in decoder for use in value.uses())
        if value.dtype == ir.DataType.FLOAT and inside and value not in scales:
            lower_source(model.graph, value, decoder, dtype)
    for node in decoder:
        lower_node(node, dtype)
    for node in decoder:
        for value in node.outputs:
            if value.dtype == dtype:
                raise_result(model.graph, node, value, decoder)


def decoder_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """The matrix products and all whose values they need, in graph order; who reads a shape alone needs no value.

    Raises EngineError if there is no matrix product.
    """
    wanted: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type == "MatMul"]
    while waiting:
        node = waiting.pop()
        if node not in wanted and node.op_type != "Shape":
            wanted.add(node)
            waiting.extend(producer for value in node.inputs if value and (producer := value.producer()))
    if not wanted:
        raise EngineError("the graph has no matrix product: it is not a step graph")
    return {node: None for node in graph if node in wanted}


def uses_outside(value: ir.Value, decoder: Container[ir.Node]) -> list[tuple[ir.Node, int]]:
    """Where the sampler reads `value`, as nodes and input indices."""
    return [(use.node, use.idx) for use in value.uses() if use.node not in decoder and use.node.op_type != "Shape"]


def lower_source(graph: ir.Graph, value: ir.Value, decoder: Container[ir.Node], dtype: ir.DataType) -> None:
    """Retype an input, weight or constant; a constant that the sampler reads too gets a copy of its own."""
    outside = uses_outside(value, decoder)
    if value.const_value is None:
        if outside:
            raise EngineError(f"both the decoder and the sampler read the input {value.name}: it has no one precision")
        if value.name == PROMPT:
            lower_input(graph, value, dtype)
        else:
            value.dtype = dtype
        return
    if outside:
        copy = ir.Value(name=f"{value.name}_{dtype.name.lower()}", shape=value.shape, const_value=value.const_value)
        graph.register_initializer(copy)
        for use in [use for use in value.uses() if use.node in decoder]:
            use.node.replace_input_with(use.idx, copy)
        value = copy
    value.const_value = cast_tensor(value, dtype)
    value.dtype = dtype


def lower_input(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """Cast a float32 input where it comes in."""
    users = [(use.node, use.idx) for use in value.uses() if use.node.op_type != "Shape"]
    result = ir.Value(name=f"{value.name}_lowered", shape=value.shape, type=ir.TensorType(dtype))
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], outputs=[result])
    graph.insert_before(graph[0], cast)
    for user, index in users:
        user.replace_input_with(index, result)


def cast_tensor(value: ir.Value, dtype: ir.DataType) -> ir.TensorProtocol:
    """The value's tensor in `dtype`; of a weight, which lies outside the graph, one that is made when it is read."""
    source = value.const_value
    assert source is not None

    def cast() -> ir.TensorProtocol:
        array: NDArray[np.float32] = stored_values(source)
        if array.size and not np.abs(array).max() <= LARGEST[dtype]:
            other = "bf16" if dtype == ir.DataType.FLOAT16 else "fp32"
            limit = f"{LARGEST[dtype]:.4g}, {dtype.name.lower()}'s largest"
            raise EngineError(f"weight {value.name} reaches beyond {limit}: use {other}")
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=value.name)

    if isinstance(source, ir.ExternalTensor | ir.LazyTensor):
        return ir.LazyTensor(cast, dtype, ir.Shape(source.shape.numpy()), name=value.name)
    return cast()


def lower_node(node: ir.Node, dtype: ir.DataType) -> None:
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = dtype
    if node.op_type in INSIDE:
        name = INSIDE[node.op_type]
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    elif node.op_type == "DequantizeLinear":
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", dtype)
    elif node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", dtype)


def raise_result(graph: ir.Graph, node: ir.Node, value: ir.Value, decoder: Container[ir.Node]) -> None:
    """Cast `value` to float32 where the sampler reads it; graph outputs and readers of its shape take it as it is."""
    outside = uses_outside(value, decoder)
    if not outside:
        return
    result = ir.Value(name=f"{value.name}_float", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph.insert_after(node, ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT)], outputs=[result]))
    for user, index in outside:
        user.replace_input_with(index, result)
