"""Graphs for arforge's own operators (`runner/cpp/src/kernels`), where a machine has them.

One operator of theirs turns a layer's queries and keys, writes keys and values into their caches, and attends to the
slots that the mask shows. Caches are float32, or int8 with a scale for each channel. Rows need not write to the same
slots, and a token's bits depend neither on the tokens decoded beside it nor on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.engines.attention import Builder, attention_nodes
from arforge.engines.onnxruntime_caches import Write, made_by, write_of

DOMAIN = "arforge"
FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8
FLAT = [0, 2, 1, 3]  # from [rows, heads, tokens, size] to a token's heads behind each other, and back


@dataclass(frozen=True)
class Vectors:
    """Queries, keys or values, and how they are turned before they are used."""

    source: ir.Value  # [rows, tokens, ...]
    offset: int  # of a token's first number
    turn: ir.Node | None  # RotaryEmbedding

    @property
    def tables(self) -> tuple[ir.Value | None, ir.Value | None, int]:
        if self.turn is None:
            return None, None, 0
        return self.turn.inputs[1], self.turn.inputs[2], self.turn.attributes.get_int("interleaved", 0)

    @property
    def positions(self) -> ir.Value | None:
        return None if self.turn is None else self.turn.inputs[3]


def use_own_attention(model: ir.Model, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Replace each attention and the writes to its caches, in place.

    `scales`: by cache, of each channel (kv_heads * head_size); a layer of which one is missing stays float32. Raises
    EngineError for a graph that does not write a cache where it reads it.
    """
    model.opset_imports[DOMAIN] = 1
    nodes = attention_nodes(model)
    writes = {value: write_of(value) for node in nodes for value in node.inputs[1:3]}
    made = OwnAttention(model, scales)
    for node in nodes:
        made.replace(node, writes[node.inputs[1]], writes[node.inputs[2]])


class OwnAttention:
    """What the layers of a graph share."""

    def __init__(self, model: ir.Model, scales: Mapping[str, NDArray[np.float32]]) -> None:
        self.graph, self.scales = model.graph, scales
        self.inputs = {str(value.name): value for value in model.graph.inputs}
        self.written: dict[ir.Value, ir.Value] = {}  # by what a scatter wrote: what the operator did
        self.kept: dict[str, ir.Value] = {}

    def replace(self, node: ir.Node, key: Write, value: Write) -> None:
        build, query, result = Builder(self.graph, node), node.inputs[0], node.outputs[0]
        assert query is not None
        assert query.shape is not None
        heads, size = query.shape[1], query.shape[3]
        assert isinstance(heads, int)
        assert isinstance(size, int)
        queries, keys = (taken(build, one, size) for one in (query, key.new))
        if keys.tables != queries.tables:  # a layer has one pair of tables
            queries, keys = (taken(build, one, size, turns=False) for one in (query, key.new))
        values = taken(build, value.new, size, turns=False)
        codes = key.cache.name in self.scales and value.cache.name in self.scales
        writes = key.written not in self.written
        cosine, sine, neighbours = queries.tables
        caches = [one.cache if writes else self.written[one.written] for one in (key, value)]
        given = [
            *(queries.source, *(one.source if writes else None for one in (keys, values)), cosine, sine),
            *(keys.positions if writes else None, queries.positions),
            *(self.inputs["write_index"] if writes else None, node.inputs[3], *caches),
        ]
        if codes:
            given += [self.scale(str(one.cache.name)) for one in (key, value)]
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(size)
        facts: dict[str, int | float] = {"heads": heads, "kv_heads": key.heads, "head_size": size, "scale": scale}
        facts |= {"query_offset": queries.offset, "key_offset": keys.offset, "value_offset": values.offset}
        attributes = ir.convenience.convert_attributes({**facts, "neighbours": neighbours})
        attended = ir.Value(name=f"{result.name}.own", type=ir.TensorType(FLOAT))
        outputs = [attended, *(self.write(one, INT8 if codes else FLOAT) for one in (key, value) if writes)]
        name = "CachedAttention8" if codes else "CachedAttention"
        self.graph.insert_before(node, ir.Node(DOMAIN, name, given, attributes, outputs=outputs, name=node.name))
        put_back(build, node, attended, heads, size)

    def write(self, write: Write, kind: ir.DataType) -> ir.Value:
        """What stands for a cache behind the step."""
        write.cache.type = ir.TensorType(kind)
        old = write.written
        new = ir.Value(name=old.name, shape=write.cache.shape, type=ir.TensorType(kind))
        old.name = f"{old.name}.scattered"
        self.graph.outputs[self.graph.outputs.index(old)] = new
        self.written[old] = new
        return new

    def scale(self, cache: str) -> ir.Value:
        if cache not in self.kept:
            name = f"{cache}.scales"
            self.kept[cache] = ir.Value(name=name, const_value=ir.Tensor(self.scales[cache], name=name))
            self.graph.register_initializer(self.kept[cache])
        return self.kept[cache]


def taken(build: Builder, value: ir.Value, size: int, *, turns: bool = True) -> Vectors:
    """Where [rows, heads, tokens, size] come from, as far as the operator does itself what lies between."""
    turn = made_by(value, "RotaryEmbedding") if turns else None
    turn = turn if turn is not None and turns_all(turn, size) else None
    before = value if turn is None else turn.inputs[0]
    assert before is not None
    parted, heads = before_split(before)
    flatter = made_by(parted, "Transpose")
    if flatter is None or list(flatter.attributes["perm"].as_ints()) != FLAT:
        return Vectors(build("Transpose", [before], FLOAT, perm=FLAT), 0, turn)
    source = flatter.inputs[0]
    assert source is not None
    apart = made_by(source, "Reshape")
    product = None if apart is None else apart.inputs[0]
    return Vectors(product if product is not None and same_tokens(product, source) else source, size * heads, turn)


def before_split(value: ir.Value) -> tuple[ir.Value, int]:
    """What a part of the heads was split from, and how many heads lie before it; the value itself where it was not."""
    split = made_by(value, "Split")
    if split is None or split.attributes.get_int("axis", 0) != 1 or split.inputs[0] is None:
        return value, 0
    before = split.outputs[: split.outputs.index(value)]
    heads = [None if one.shape is None else one.shape[1] for one in before]
    known = [one for one in heads if isinstance(one, int)]
    return (split.inputs[0], sum(known)) if len(known) == len(heads) else (value, 0)


def same_tokens(product: ir.Value, source: ir.Value) -> bool:
    """Whether a product [rows, tokens, ...] has the numbers of [rows, tokens, heads, size] token by token."""
    if product.shape is None or source.shape is None or len(product.shape) != 3:
        return False
    heads, size = source.shape[2:]
    known = isinstance(heads, int) and isinstance(size, int)
    return known and product.shape[:2] == source.shape[:2] and product.shape[2] == heads * size


def turns_all(turn: ir.Node, size: int) -> bool:
    """Whether all numbers of a head are turned, by tables of positions."""
    cosine = turn.inputs[1]
    known = {"interleaved"} >= turn.attributes.keys() and len(turn.inputs) == 4 and turn.inputs[3] is not None
    shape = None if cosine is None else cosine.shape
    return known and shape is not None and len(shape) == 2 and shape[1] == size / 2


def put_back(build: Builder, node: ir.Node, attended: ir.Value, heads: int, size: int) -> None:
    """Have what read a layer's [rows, heads, tokens, size] read [rows, tokens, heads * size] in its place."""
    result = node.outputs[0]
    users = [user for user, _ in result.uses()]
    if len(users) == 1 and users[0].op_type == "Transpose" and list(users[0].attributes["perm"].as_ints()) == FLAT:
        flat = users[0].outputs[0]
        after = [user for user, _ in flat.uses()]
        if len(after) == 1 and after[0].op_type == "Reshape" and flattens(after[0].outputs[0], heads * size):
            after[0].outputs[0].replace_all_uses_with(attended)
            return
    apart = build.constant("apart", np.array([0, 0, heads, size]))
    turned = build("Transpose", [build("Reshape", [attended, apart], FLOAT)], FLOAT, perm=FLAT)
    turned.shape = result.shape
    result.replace_all_uses_with(turned)


def flattens(value: ir.Value, numbers: int) -> bool:
    return value.shape is not None and len(value.shape) == 3 and value.shape[2] == numbers
