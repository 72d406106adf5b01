"""A bf16 graph for ONNX Runtime's CPU provider, which computes no bf16: bf16 caches and weights, float32 between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

BF16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen_bf16(model: ir.Model) -> None:
    """Cast inputs of bf16 where they come in and outputs where they leave, in place; all else becomes float32."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype == BF16 and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = FLOAT
    for node in graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if name in ("to", "output_dtype") and attribute.as_int() == BF16:
                node.attributes[name] = ir.AttrInt64(name, FLOAT)
        for value in node.outputs:
            if value.dtype == BF16:
                value.dtype = FLOAT
    for value in list(graph.inputs):
        if value.dtype == BF16:
            wide = ir.Value(name=f"{value.name}.wide", shape=value.shape, type=ir.TensorType(FLOAT))
            value.replace_all_uses_with(wide)
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", FLOAT)], outputs=[wide])
            graph.insert_before(graph[0], cast)
    for index, value in enumerate(graph.outputs):
        if "_cache_" in str(value.name) or "_update_" in str(value.name):
            name = str(value.name)
            value.name = f"{name}.wide"
            narrow = ir.Value(name=name, shape=value.shape, type=ir.TensorType(BF16))
            graph.append(ir.Node("", "Cast", [value], [ir.AttrInt64("to", BF16)], outputs=[narrow]))
            graph.outputs[index] = narrow
