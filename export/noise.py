"""From a traced step that gives its logits to the one that an engine runs, which draws by numbers or by noise."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

KEPT_LOGITS = "kept_logits"  # the value of a step behind top-k and top-p: float32 [images, outputs, vocabulary]


def drawing_step(full: ir.Model, kind: str) -> ir.Model:
    """A copy of `full`, a graph step-logits, without logits; `kind`: "uniform", as it draws already, or "noise"."""
    lean = full.clone()
    lean.graph.outputs.remove(next(value for value in lean.graph.outputs if value.name == "logits"))
    if kind == "noise":
        draw_by_noise(lean)
    return lean


def draw_by_noise(model: ir.Model) -> None:
    """Draw the token with the largest sum of logit and Gumbel noise, made of numbers within (0, 1), in place.

    It changes its mind less often than the inverse of the cumulative distribution where logits change a little, which
    is what running ahead on drafts lives on.
    """
    graph = model.graph
    place, uniforms = next((index, value) for index, value in enumerate(graph.inputs) if value.name == "uniforms")
    kept = next(value for node in graph for value in node.outputs if value.name == KEPT_LOGITS)
    drawn = drawn_with(uniforms)
    node = drawn.producer()
    assert node is not None
    kind = ir.TensorType(ir.DataType.FLOAT)
    noise = ir.Value(name="noise", shape=kept.shape, type=kind)
    value = noise
    for name, operator in (("log", "Log"), ("exponential", "Neg"), ("minus_gumbel", "Log")):
        result = ir.Value(name=f"noise.{name}", shape=kept.shape, type=kind)
        graph.insert_before(node, ir.Node("", operator, [value], outputs=[result]))
        value = result
    shifted = ir.Value(name="noise.shifted", shape=kept.shape, type=kind)
    graph.insert_before(node, ir.Node("", "Sub", [kept, value], outputs=[shifted]))
    largest = ir.Value(name="noise.drawn", shape=drawn.shape, type=ir.TensorType(ir.DataType.INT64))
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("keepdims", 0)]
    graph.insert_before(node, ir.Node("", "ArgMax", [shifted], attributes, outputs=[largest]))
    drawn.replace_all_uses_with(largest)
    uniforms.replace_all_uses_with(noise)  # those that are left ask for the numbers of images and outputs
    graph.inputs[place] = noise
    RemoveUnusedNodesPass()(model)


def drawn_with(uniforms: ir.Value) -> ir.Value:
    """The tokens that a traced step draws with these numbers: the sum over the vocabulary that they lead to."""
    [node] = [reader for reader in uniforms.consumers() if reader.op_type != "Shape"]
    while node.op_type != "ReduceSum":
        [node] = node.outputs[0].consumers()
    return node.outputs[0]
