"""The lowerings of attention for TensorRT, and which one a graph gets.

Fused: the ONNX Attention node, which TensorRT takes as its own attention operator and must have one kernel for.
Decomposed: matrix products and a softmax, from which TensorRT's compiler makes what kernels it can.
View: the same over caches in the kernels' own order, read at a second address (`tensorrt_view`). Only where asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from arforge.runner.errors import EngineError

Lowering = Literal["fused", "decomposed", "view"]
LARGEST_FUSED_HEAD = 128
HIDDEN = -3.0e38  # added nowhere: it takes the place of a masked score, and its exponential is 0


@dataclass(frozen=True)
class Choice:
    lowering: Lowering
    reason: str


def choose_attention(model: ir.Model, asked: str) -> Choice:
    """`asked` is "auto" or a lowering. Raises EngineError if that cannot be built."""
    if asked == "view":
        if problem := against_view(model):
            raise EngineError(f"attention cannot read views of the caches: {problem}. Use --attention auto")
        return Choice("view", "as asked")
    against = against_fusing(model)
    if asked == "fused" and against:
        raise EngineError(f"attention cannot be fused: {against}. Use --attention decomposed, or auto")
    if asked == "decomposed":
        return Choice("decomposed", "as asked")
    if against:
        return Choice("decomposed", against)
    return Choice("fused", "as asked" if asked == "fused" else "the fused operator takes this type and head size")


def against_fusing(model: ir.Model) -> str | None:
    """Why TensorRT's fused attention does not take the graph's; None where it does."""
    nodes = attention_nodes(model)
    query = nodes[0].inputs[0]
    assert query is not None
    assert query.shape is not None
    head_size = query.shape[-1]
    if query.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return "the fused operator takes fp16 and bf16 alone"
    if not isinstance(head_size, int) or head_size % 8 or head_size > LARGEST_FUSED_HEAD:
        return f"the fused operator takes heads of a multiple of 8 up to {LARGEST_FUSED_HEAD}, not {head_size}"
    if max(Counter(node.inputs[1] for node in nodes).values()) > 1:
        # TensorRT-RTX 1.7.1 crashes on it while building; a copy of the cache between them would cost each step.
        return "several layers read one cache, which the fused operator does not build for"
    return None


def against_view(model: ir.Model) -> str | None:
    """Why attention cannot read views of the caches; None where it can."""
    query = attention_nodes(model)[0].inputs[0]
    assert query is not None
    if query.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return "in float32 it is no single kernel, and so has nothing that waits for the update"
    return None


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Raises EngineError if the graph has no attention."""
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    if not nodes:
        raise EngineError("the graph has no Attention node: it is not a step graph")
    return nodes


def prepare_fused(model: ir.Model) -> None:
    """TensorRT's importer refuses the wish for a float32 softmax; its fused kernels have one anyway."""
    for node in attention_nodes(model):
        node.attributes.pop("softmax_precision", None)


def decompose_attention(model: ir.Model) -> None:
    """Replace each Attention node by products, a mask and a softmax; scores are float32 from mask to softmax.

    Grouped heads: the queries of a group stand below each other in one product with their one key head.
    """
    masks: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in attention_nodes(model):
        query, key, value, mask = node.inputs[:4]
        assert query is not None
        assert key is not None
        assert value is not None
        assert mask is not None
        assert query.shape is not None
        assert key.shape is not None
        heads, kv_heads, head_size = query.shape[1], key.shape[1], query.shape[3]
        assert isinstance(heads, int)
        assert isinstance(kv_heads, int)
        assert isinstance(head_size, int)
        group, dtype = heads // kv_heads, query.dtype
        assert dtype is not None
        build = Builder(model.graph, node)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(head_size)
        scaled = build("Mul", [query, build.constant("scale", np.array(scale, dtype.numpy()))], dtype)
        if group > 1:
            scaled = build("Reshape", [scaled, build.constant("stack", np.array([0, kv_heads, -1, head_size]))], dtype)
            if (mask, group) not in masks:
                repeated = build("Concat", [mask] * group, ir.DataType.BOOL, axis=2)
                masks[mask, group] = repeated
            mask = masks[mask, group]
        keys = build("Transpose", [key], dtype, perm=[0, 1, 3, 2])
        scores = build.cast(build("MatMul", [scaled, keys], dtype), ir.DataType.FLOAT)
        hidden = build.constant("hidden", np.array(HIDDEN, np.float32))
        seen = build("Where", [mask, scores, hidden], ir.DataType.FLOAT)
        weights = build.cast(build("Softmax", [seen], ir.DataType.FLOAT, axis=-1), dtype)
        result = build("MatMul", [weights, value], dtype)
        if group > 1:
            result = build("Reshape", [result, build.constant("unstack", np.array([0, heads, -1, head_size]))], dtype)
        result.shape = node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(result)
        model.graph.remove(node, safe=True)


class Builder:
    """Puts nodes before another, which names them."""

    def __init__(self, graph: ir.Graph, place: ir.Node) -> None:
        self.graph, self.place, self.name = graph, place, f"{place.outputs[0].name}"

    def __call__(self, op_type: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: Any) -> ir.Value:
        name = f"{self.name}.{op_type.lower()}_{len(self.graph)}"
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        attrs = ir.convenience.convert_attributes(attributes)
        self.graph.insert_before(self.place, ir.Node("", op_type, inputs, attrs, outputs=[output], name=name))
        return output

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        full = f"{self.name}.{name}"
        value = ir.Value(name=full, const_value=ir.Tensor(array, name=full))
        self.graph.register_initializer(value)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self("Cast", [value], dtype, to=int(dtype))
