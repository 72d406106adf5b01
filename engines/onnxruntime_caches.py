"""Keys and values in 8 bits: attention as ONNX Runtime's own operator does it, rows standing as heads of one batch.

The operator rotates and quantises what a step writes, with a scale for each channel of a head, and reads no slot beyond
those in use. All rows must write to the same slots, as those of images do that get on together; each has a mask of its
own, and positions of its own where they are rotated before. It takes several tokens of one row alone, so rows become
heads. Their number is an attribute: the graph has the operator for several numbers, which the runner sets
(`folded_graph.py`), and runs the one that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.engines.attention import Builder, attention_nodes
from arforge.engines.onnxruntime_blocks import CONTRIB
from arforge.engines.onnxruntime_shared_caches import Lengths, Operands, SharedCaches
from arforge.runner.backends.folded_graph import MARK, NUMBERS
from arforge.runner.errors import EngineError
from arforge.runner.step_graph import written_name

FLOAT, INT8, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64
BOOL = ir.DataType.BOOL
HIDDEN = -1e30
ONE_KIND = {"Attention"}
TURNED = 8  # pairs of channels that the operator rotates at once
Scales = Mapping[str, NDArray[np.float32]]
"""By cache, of each channel: float32 (kv_heads * head_size). A cache that is missing stays float32."""


def fold_attention(model: ir.Model, scales: Scales, *, own_positions: bool = False) -> None:
    """Replace each attention and the writes to its caches, in place; caches become (1, heads of all rows, …).

    `own_positions`: rows have positions of their own, for which the operator cannot rotate.
    """
    made = Folded(model, scales, own_positions=own_positions)
    for node in attention_nodes(model):
        made.replace(node)
    made.count_rows_by_tokens()


class Folded:
    """What all layers share."""

    def __init__(self, model: ir.Model, scales: Scales, *, own_positions: bool) -> None:
        self.graph, self.scales, self.own_positions = model.graph, scales, own_positions
        self.inputs = {str(value.name): value for value in model.graph.inputs}
        self.caches: set[ir.Value] = set()
        build = Builder(model.graph, model.graph[0])
        self.constants: dict[str, ir.Value] = {}
        self.rows = build("Shape", [self.inputs["tokens"]], INT64, start=0, end=1)
        zero, one = self.numbers(0), self.numbers(1)
        self.first_slot = build("Slice", [self.inputs["write_index"], zero, one], INT64)
        width = build("Shape", [self.inputs["tokens"]], INT64, start=1, end=2)
        self.tokens = self.queries = self.lengths(build, width, build("Add", [self.first_slot, width], INT64))
        if "query_positions" in self.inputs:  # the operator takes no more queries than there are slots in use
            asked = build("Shape", [self.inputs["query_positions"]], INT64, start=1, end=2)
            self.queries = self.lengths(build, asked, build("Max", [self.tokens.used, asked], INT64))
        row = build("Slice", [self.inputs["positions"], zero, one, zero], INT64)
        self.positions = build("Reshape", [row, self.numbers(-1)], INT64)
        begin, step = (build.constant(f"place{value}", np.array(value)) for value in (0, 1))
        places = build("Range", [begin, build("Squeeze", [width], INT64), step], INT64)
        self.places = build("Unsqueeze", [places, zero], INT64)
        self.among = among_numbers(build, self.rows)
        self.masks: dict[ir.Value, ir.Value] = {}
        self.tables: dict[ir.Value, ir.Value] = {}
        self.tiles: dict[str, ir.Value] = {}
        self.writes: dict[ir.Value | None, Write] = {}
        self.shared = SharedCaches(self)

    def lengths(self, build: Builder, width: ir.Value, used: ir.Value) -> Lengths:
        last = build("Cast", [build("Sub", [used, self.numbers(1)], INT64)], INT32, to=int(INT32))
        total = build("Cast", [build("Squeeze", [used], INT64)], INT32, to=int(INT32))
        flat = build("Concat", [self.numbers(1), width, self.numbers(-1)], INT64, axis=0)
        return Lengths(width, used, last, total, flat)

    def numbers(self, *values: int) -> ir.Value:
        name = "folded." + "_".join(map(str, values))
        if name not in self.constants:
            array = np.array(values, np.int64)
            self.constants[name] = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            self.graph.register_initializer(self.constants[name])
        return self.constants[name]

    def replace(self, node: ir.Node) -> None:
        query, keys, values, mask = node.inputs[:4]
        result = node.outputs[0]
        assert query is not None
        assert query.shape is not None
        assert mask is not None
        heads, size = query.shape[1], query.shape[3]
        assert isinstance(heads, int)
        assert isinstance(size, int)
        build = Builder(self.graph, node)
        writes = [self.write_of(value) for value in (keys, values)]
        kind = INT8 if all(write.cache.name in self.scales for write in writes) else FLOAT
        shared = any(write.readers > 1 for write in writes)
        made = (self.shared.operands if shared else self.operands)(build, query, writes, kind)
        given = [*made.inputs, self.bias(build, mask, heads, made.lengths)]
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(size)
        attributes = made.attributes | {
            "num_heads": heads,
            "kv_num_heads": writes[0].heads,
            "scale": scale,
            "causal": 0,
        }
        if kind == INT8:
            given += [None, *(self.tiled(build, str(one.cache.name)) for one in writes)]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        attended = ir.Value(name=f"{result.name}.folded", type=ir.TensorType(FLOAT))
        attention = Attention(str(node.name), given, attributes)
        self.graph.insert_before(node, self.for_numbers(attention, 0, NUMBERS, [attended, *made.present]))
        shape = build("Concat", [made.lengths.width, self.rows, self.numbers(heads, size)], INT64, axis=0)
        whole = build("Transpose", [build("Reshape", [attended, shape], FLOAT)], FLOAT, perm=[1, 2, 0, 3])
        whole.shape = result.shape
        result.replace_all_uses_with(whole)
        self.graph.remove(node, safe=True)

    def write_of(self, value: ir.Value | None) -> Write:
        """As `write_of` finds it in the graph as it was."""
        if value not in self.writes:
            self.writes[value] = write_of(value)
        return self.writes[value]

    def operands(self, build: Builder, query: ir.Value, writes: list[Write], kind: ir.DataType) -> Operands:
        """A layer's that has caches of its own, which the operator writes to."""
        new, lengths = [one.new for one in writes], self.tokens
        rotated = None if self.own_positions else packed_by(query, *new)
        attributes: dict[str, int | float | str] = {}
        if rotated is None:
            given: list[ir.Value | None] = [self.flat(build, value, lengths) for value in (query, *new)]
            tables: list[ir.Value | None] = [None, None, None]
        else:
            assert query.shape is not None
            heads, size = query.shape[1], query.shape[3]
            assert isinstance(heads, int)
            assert isinstance(size, int)
            given = [self.packed(build, rotated, heads * size), None, None]
            tables = [*(self.looked_up(build, table) for table in rotated.tables), self.places]
            attributes = {"do_rotary": 1, "rotary_interleaved": rotated.interleaved}
        given += [*(one.cache for one in writes), lengths.last, lengths.total, *tables]
        return Operands(given, attributes, lengths, [self.fold(one, kind) for one in writes])

    def for_numbers(self, made: Attention, first: int, last: int, outputs: list[ir.Value]) -> ir.Node:
        """The operator for the number of rows that a step has, one of those from `first` to before `last`."""
        if last - first == 1:
            return made.node(first, outputs)
        middle = middle_of(first, last)
        branches = []
        for name, begin, end in (("then_branch", first, middle), ("else_branch", middle, last)):
            inner = [ir.Value(name=f"{one.name}.{begin}_{end}", type=one.type) for one in outputs]
            inside = ir.Graph([], inner, nodes=[self.for_numbers(made, begin, end, inner)], name=f"{made.name}.{name}")
            branches.append(ir.AttrGraph(name, inside))
        name = f"{made.name}.{first}_{last}"
        return ir.Node("", "If", [self.among[first, middle]], branches, outputs=outputs, name=name)

    def fold(self, write: Write, kind: ir.DataType) -> ir.Value:
        """Give a cache its new shape and type; what stands for it behind the step."""
        write.cache.shape, write.cache.type = ir.Shape([1, "heads", "slots", write.size]), ir.TensorType(kind)
        old = write.written
        old.name = f"{old.name}.scattered"
        new = ir.Value(name=written_name(str(write.cache.name)), shape=write.cache.shape, type=write.cache.type)
        self.graph.outputs[self.graph.outputs.index(old)] = new
        self.caches |= {write.cache, old}
        return new

    def flat(self, build: Builder, value: ir.Value, lengths: Lengths) -> ir.Value:
        """From [rows, heads, width, size] to [1, width, rows * heads * size]."""
        return build("Reshape", [build("Transpose", [value], FLOAT, perm=[2, 0, 1, 3]), lengths.flat], FLOAT)

    def packed(self, build: Builder, rotated: Packed, size: int) -> ir.Value:
        """From [rows, width, 3 * size] to [1, width, 3 * rows * size]: queries of all rows, then keys, then values."""
        apart = build("Concat", [self.rows, self.tokens.width, self.numbers(3, size)], INT64, axis=0)
        ordered = build("Transpose", [build("Reshape", [rotated.source, apart], FLOAT)], FLOAT, perm=[1, 2, 0, 3])
        return build("Reshape", [ordered, self.tokens.flat], FLOAT)

    def looked_up(self, build: Builder, table: ir.Value) -> ir.Value:
        """A rotary table of the step's tokens, followed by a row for each other slot in use, as the operator asks.

        Where nothing stands before a step's tokens, the operator takes rows in their order, whatever their positions.
        """
        if table not in self.tables:
            more = build("Sub", [self.tokens.used, self.tokens.width], INT64)
            ends = build("Concat", [self.numbers(0, 0), more, self.numbers(0)], INT64, axis=0)
            self.tables[table] = build("Pad", [build("Gather", [table, self.positions], FLOAT), ends], FLOAT)
        return self.tables[table]

    def bias(self, build: Builder, mask: ir.Value, heads: int, lengths: Lengths) -> ir.Value:
        """The mask of the slots in use, float32 [1, rows * heads, width, slots], made once for all layers."""
        if mask not in self.masks:
            cut = build("Slice", [mask, self.numbers(0), lengths.used, self.numbers(3)], BOOL)
            seen, hidden = (build.constant(f"bias{value}", np.array(value, np.float32)) for value in (0, HIDDEN))
            added = build("Where", [cut, seen, hidden], FLOAT)
            every = build("Expand", [added, self.numbers(1, heads, 1, 1)], FLOAT)
            shape = build("Concat", [self.numbers(1, -1), lengths.width, lengths.used], INT64, axis=0)
            self.masks[mask] = build("Reshape", [every, shape], FLOAT)
        return self.masks[mask]

    def tiled(self, build: Builder, cache: str) -> ir.Value:
        """A cache's scales for the heads of all rows."""
        if cache not in self.tiles:
            name = f"{cache}.scales"
            scales = ir.Value(name=name, const_value=ir.Tensor(self.scales[cache], name=name))
            self.graph.register_initializer(scales)
            self.tiles[cache] = build("Tile", [scales, self.rows], FLOAT)
        return self.tiles[cache]

    def count_rows_by_tokens(self) -> None:
        """Caches have another number of rows now, which the graph may not go by."""
        for node in self.graph:
            if node.op_type == "Shape" and node.inputs[0] in self.caches:
                if (node.attributes.get_int("start", 0), node.attributes.get_int("end", 0)) != (0, 1):
                    raise EngineError("the step graph reads its caches' shape: it has float32 caches alone")
                node.replace_input_with(0, self.inputs["tokens"])


@dataclass(frozen=True)
class Attention:
    """The operator with the heads of one row."""

    name: str
    inputs: list[ir.Value | None]
    attributes: Mapping[str, int | float | str]

    def node(self, number: int, outputs: list[ir.Value]) -> ir.Node:
        """It for one of the numbers of rows, whose heads are marked so."""
        marked = {name: marked_for(number, int(self.attributes[name])) for name in ("num_heads", "kv_num_heads")}
        facts = ir.convenience.convert_attributes({**self.attributes, **marked})
        name = f"{self.name}.{number}"
        return ir.Node(CONTRIB, "GroupQueryAttention", self.inputs, facts, outputs=outputs, name=name)


def marked_for(number: int, of_one_row: int) -> int:
    return MARK * (1 + number) + of_one_row


def middle_of(first: int, last: int) -> int:
    """Where some of the numbers of rows part. The first of all, which a graph was opened for, is one step away."""
    return 1 if first == 0 else (first + last) // 2


def among_numbers(build: Builder, rows: ir.Value) -> dict[tuple[int, int], ir.Value]:
    """By the first and the one after the last of some of the numbers of rows: whether a step has one of those."""
    count, found = build("Squeeze", [rows], INT64), {}

    def add(first: int, last: int) -> ir.Value:
        if last - first == 1:
            known = build("Constant", [], INT64, value_int=marked_for(first, 1))
            found[first, last] = build("Equal", [count, known], BOOL)
        else:
            middle = middle_of(first, last)
            found[first, last] = build("Or", [add(first, middle), add(middle, last)], BOOL)
        return found[first, last]

    add(0, 1)
    add(1, NUMBERS)
    return found


@dataclass(frozen=True)
class Packed:
    """A product of queries, keys and values, of as many heads, and how the first two are rotated."""

    source: ir.Value  # [rows, width, 3 * heads * size]
    tables: tuple[ir.Value, ir.Value]  # cosine and sine
    interleaved: int


def packed_by(query: ir.Value, key: ir.Value, value: ir.Value) -> Packed | None:
    """What the operator can take apart and rotate by itself; None where it is not just that."""
    first, other, split = made_by(query, "RotaryEmbedding"), made_by(key, "RotaryEmbedding"), made_by(value, "Split")
    turn = None if split is None else made_by(split.inputs[0], "Transpose")
    apart = None if turn is None else made_by(turn.inputs[0], "Reshape")
    if first is None or other is None or split is None or apart is None:
        return None
    turned, cosine, sine = first.inputs[:3]
    source = apart.inputs[0]
    assert source is not None
    assert cosine is not None
    assert cosine.shape is not None
    assert sine is not None
    assert query.shape is not None
    size, rotated = query.shape[3], cosine.shape[1]
    alike = (turned, other.inputs[0], value) == tuple(split.outputs) and first.inputs[1:] == other.inputs[1:]
    whole = isinstance(rotated, int) and 2 * rotated == size and not rotated % TURNED and query.shape == key.shape
    turns = [node.attributes.get_int("interleaved", 0) for node in (first, other)]
    known = {"interleaved"} >= first.attributes.keys() | other.attributes.keys()
    return Packed(source, (cosine, sine), turns[0]) if alike and whole and known and turns[0] == turns[1] else None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


@dataclass(frozen=True)
class Write:
    """What a step puts into a cache."""

    cache: ir.Value
    new: ir.Value  # [rows, kv_heads, width, size]
    written: ir.Value
    heads: int
    size: int
    readers: int  # layers


def write_of(value: ir.Value | None) -> Write:
    """How a cache that attention reads is written. Raises EngineError where something else reads it too."""
    node = None if value is None else value.producer()
    readers = [] if value is None else [user for user, _ in value.uses()]
    if value is None or node is None or node.op_type != "TensorScatter" or {one.op_type for one in readers} != ONE_KIND:
        raise EngineError("the step graph does not write a cache where it reads it: it has float32 caches alone")
    cache, new = node.inputs[:2]
    assert cache is not None
    assert cache.shape is not None
    assert new is not None
    heads, size = cache.shape[1], cache.shape[3]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return Write(cache, new, value, heads, size, len(readers))
