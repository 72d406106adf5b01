"""Attention of narrow steps, as ONNX Runtime's CPU provider does it best: one query at a time, without a scale.

For a single query and no scale the provider multiplies with keys and values as they lie in the cache; else it first
packs them anew, head by head. Up to `narrow_width` queries the former costs less, or little more (docs/performance.md),
so there each query of a head becomes a head of its own that shares the keys and values. As the two round differently,
that is also how far a token's bits do not depend on how many others are decoded beside it.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import Builder, attention_nodes
from arforge.export.stored_values import stored_values
from arforge.runner.bundle import ModelFacts

LEAST, MOST = 5, 64  # queries; 5 cost less whatever the size of the cache
REREAD = 5 << 20  # bytes of a head's keys and values that the queries of a step read, each all of them
FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
HIDDEN = np.finfo(np.float32).min


def narrow_width(model: ModelFacts) -> int:
    """Queries of a step up to which each is a head of its own: fewer, the more a full cache holds."""
    cache = 8 * model.head_size * model.position_rows  # bytes of one head's, float32
    return min(MOST, max(LEAST, REREAD // cache))


def ease_attention(model: ir.Model, narrow: int) -> int:
    """Do both wherever the queries come from a rotary embedding, the first up to `narrow` queries.

    Returns how many Attention nodes were changed.
    """
    tables: dict[tuple[ir.Value, float], ir.Value] = {}
    masks: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    changed = 0
    for node in attention_nodes(model):
        query = node.inputs[0]
        assert query is not None
        assert query.shape is not None
        turned = query.producer()
        if turned is None or turned.op_type != "RotaryEmbedding" or len(query.uses()) > 1:
            continue
        size = query.shape[3]
        assert isinstance(size, int)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(size)
        for index in (1, 2):
            turned.replace_input_with(index, scaled_table(model, turned.inputs[index], scale, tables))
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
        split_queries(model, node, narrow, masks)
        changed += 1
    return changed


def scaled_table(
    model: ir.Model, table: ir.Value | None, scale: float, made: dict[tuple[ir.Value, float], ir.Value]
) -> ir.Value:
    """A rotary table that also scales; by a power of two, as for most sizes of heads, it changes no score's bits."""
    assert table is not None
    assert table.const_value is not None
    if (table, scale) not in made:
        name = f"{table.name}.scaled_{len(made)}"
        value = ir.Value(
            name=name,
            shape=table.shape,
            type=ir.TensorType(FLOAT),
            const_value=ir.Tensor(stored_values(table.const_value) * np.float32(scale), name=name),
        )
        model.graph.register_initializer(value)
        made[table, scale] = value
    return made[table, scale]


def split_queries(
    model: ir.Model, node: ir.Node, narrow: int, masks: dict[ir.Value, tuple[ir.Value, ir.Value]]
) -> None:
    """Reshape queries [rows, heads, width, size] to [rows, heads * width, 1, size] up to a width of `narrow`.

    Nothing is copied; the graph decides by the width that it is given. `masks`: what was made for each mask.
    """
    query, mask, result = node.inputs[0], node.inputs[3], node.outputs[0]
    assert query is not None
    assert query.shape is not None
    assert mask is not None
    heads, size = query.shape[1], query.shape[3]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    build = Builder(model.graph, node)
    if mask not in masks:
        masks[mask] = split_mask(build, mask, narrow, heads, size)
    split, target = masks[mask]
    attended = ir.Value(name=f"{result.name}.split", type=ir.TensorType(FLOAT))
    given = [build("Reshape", [query, target], FLOAT), *node.inputs[1:3], split]
    attention = ir.Node("", "Attention", given, node.attributes.values(), outputs=[attended], name=node.name)
    model.graph.insert_before(node, attention)
    whole = build("Reshape", [attended, build.constant("whole", np.array([0, heads, -1, size]))], FLOAT)
    whole.shape = result.shape
    result.replace_all_uses_with(whole)
    model.graph.remove(node, safe=True)


def split_mask(build: Builder, mask: ir.Value, narrow: int, heads: int, size: int) -> tuple[ir.Value, ir.Value]:
    """The mask of split queries, float32 and so made once for all layers, and the shape that splits them."""
    one, narrowest = build.constant("one", np.array([1])), build.constant("narrow", np.array([narrow]))
    rows, width, slots = (build("Shape", [mask], INT64, start=axis, end=axis + 1) for axis in (0, 2, 3))
    split = build("LessOrEqual", [width, narrowest], BOOL)
    parts = build("Where", [split, width, one], INT64)  # heads that a head becomes
    left = build("Div", [width, parts], INT64)  # queries in each
    begin, end = build.constant("all", np.array([0, -1])), build.constant("size", np.array([size]))
    target = build("Concat", [begin, left, end], INT64, axis=0)
    seen, hidden = (build.constant(name, np.array(value, np.float32)) for name, value in (("0", 0), ("min", HIDDEN)))
    added = build("Where", [mask, seen, hidden], FLOAT)
    apart = build("Reshape", [added, build("Concat", [rows, parts, left, slots], INT64, axis=0)], FLOAT)
    times = build("Where", [split, build.constant("heads", np.array([heads])), one], INT64)
    return build("Tile", [apart, build("Concat", [one, times, one, one], INT64, axis=0)], FLOAT), target
