"""Gated products and drawing by arforge's own operators, in graphs that have its attention (`onnxruntime_own.py`)."""

from __future__ import annotations

import onnx_ir as ir

from arforge.engines.onnxruntime_caches import made_by
from arforge.engines.onnxruntime_own import DOMAIN

SHAPE = ("K", "N", "bits", "block_size")  # of a product's attributes


def gate_products(model: ir.Model) -> int:
    """Make one operator of silu(x A) * (x B), where both matrices lie in blocks of a kind. Returns how many."""
    made = 0
    for node in [node for node in model.graph if node.op_type == "Mul"]:
        found = gated(node)
        if found is None:
            continue
        gate, other = found
        facts = [ir.AttrInt64(name, gate.attributes[name].as_int()) for name in SHAPE]
        result = ir.Value(name=f"{node.outputs[0].name}.gated", type=ir.TensorType(ir.DataType.FLOAT))
        given = [*gate.inputs[:3], *other.inputs[1:3]]
        model.graph.insert_before(node, ir.Node(DOMAIN, "GatedProduct", given, facts, outputs=[result], name=node.name))
        node.outputs[0].replace_all_uses_with(result)
        made += 1
    return made


def gated(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The products of a gate and of what passes it, where the node multiplies their results; None where not."""
    for gates, passing in (node.inputs, node.inputs[::-1]):
        silu, other = made_by(gates, "Mul"), made_by(passing, "MatMulNBits")
        if silu is None or other is None:
            continue
        for value, share in (silu.inputs, silu.inputs[::-1]):
            sigmoid, gate = made_by(share, "Sigmoid"), made_by(value, "MatMulNBits")
            if sigmoid is not None and gate is not None and sigmoid.inputs[0] is value and alike(gate, other):
                return gate, other
    return None


def alike(gate: ir.Node, other: ir.Node) -> bool:
    """Whether two products read the same rows by matrices of the same kind, and have no zero points or biases."""
    facts = [[node.attributes[name].as_int() for name in SHAPE] for node in (gate, other)]
    plain = all(value is None for node in (gate, other) for value in node.inputs[3:])
    return gate.inputs[0] is other.inputs[0] and facts[0] == facts[1] and plain


def draw_tokens(model: ir.Model) -> int:
    """Make one operator of the sampler's sums of probabilities and their comparison. Returns how many."""
    made = 0
    for node in [node for node in model.graph if node.op_type == "CumSum"]:
        found = drawn(node)
        if found is None:
            continue
        numbers, counted = found
        result = ir.Value(name=f"{counted.name}.drawn", type=ir.TensorType(ir.DataType.INT64))
        model.graph.insert_before(
            node, ir.Node(DOMAIN, "Draw", [node.inputs[0], numbers], outputs=[result], name=node.name)
        )
        counted.replace_all_uses_with(result)
        made += 1
    return made


def drawn(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The numbers that sums of probabilities are compared with, and the value that counts the smaller ones."""
    compared = [user for user, _ in node.outputs[0].uses() if user.op_type == "LessOrEqual"]
    bound = made_by(compared[0].inputs[1], "Mul") if len(compared) == 1 else None
    if bound is None or compared[0].inputs[0] is not node.outputs[0]:
        return None
    apart, total = made_by(bound.inputs[0], "Unsqueeze"), made_by(bound.inputs[1], "Slice")
    cast = only_user(compared[0].outputs[0], "Cast")
    count = None if cast is None else only_user(cast.outputs[0], "ReduceSum")
    if apart is None or total is None or count is None or total.inputs[0] is not node.outputs[0]:
        return None
    numbers = apart.inputs[0]
    return None if numbers is None else (numbers, count.outputs[0])


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None
