"""Bounds what attention over all pixels takes in memory: some queries at a time.

All scores of 90x90 positions are 262 MB in float32, for each image and each attention. The numbers stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import onnx_ir as ir

SCORES = 1 << 24  # bytes of a block's scores, for one image
INT64 = ir.DataType.INT64
POSITIONS = 2  # the dimension of queries


def blocks_for(positions: int) -> int:
    """Into how many blocks the queries of so many positions are split."""
    return math.ceil(positions**2 * ir.DataType.FLOAT.itemsize / SCORES)


def attend_in_blocks(model: ir.Model, blocks: int) -> int:
    """Let each attention of a tokenizer's graph see its queries in so many blocks. Returns how many there are.

    What follows the queries, until they have met the values, is done once for each block; a runtime that goes from an
    output's needs to what they need, as ONNX Runtime does, ends one before it begins the next.
    """
    chains = [chain_of(node) for node in model.graph if node.op_type == "Softmax"] if blocks > 1 else []
    edges: dict[str, Sequence[ir.Value]] = {}  # of blocks, by how many positions there are
    for chain in chains:
        put = Inserter(model.graph, chain[-1])
        query = chain[0].inputs[0]
        assert query is not None
        assert query.shape is not None
        positions = str(query.shape[POSITIONS])
        if positions not in edges:
            edges[positions] = edges_of(put, query, blocks)
        axis = put.constant("axis", [POSITIONS])
        parts = []
        for span in pairwise(edges[positions]):
            part, before = put("Slice", [query, *span, axis]), query
            for node in chain:
                part = put(node.op_type, [part if i is before else i for i in node.inputs], node.attributes.values())
                before = node.outputs[0]
            parts.append(part)
        whole = put("Concat", parts, [ir.AttrInt64("axis", POSITIONS)])
        whole.shape = chain[-1].outputs[0].shape
        chain[-1].outputs[0].replace_all_uses_with(whole)
        model.graph.remove(list(reversed(chain)), safe=True)
    return len(chains)


def chain_of(softmax: ir.Node) -> list[ir.Node]:
    """The nodes from the queries, [images, channels, positions], to their answers, in order."""
    chain = [softmax]
    while chain[0].op_type != "Transpose":
        before = chain[0].inputs[0]
        assert before is not None
        producer = before.producer()
        assert producer is not None
        chain.insert(0, producer)
    while chain[-1].op_type != "MatMul":
        chain.append(next(iter(chain[-1].outputs[0].uses())).node)
    return chain


def edges_of(put: Inserter, query: ir.Value, blocks: int) -> Sequence[ir.Value]:
    """Where the blocks begin, and where the last one ends or would end: int64 [1] each."""
    positions = put.shape_of(query, POSITIONS)
    more = put("Add", [positions, put.constant("more", [blocks - 1])], dtype=INT64)
    size = put("Div", [more, put.constant("blocks", [blocks])], dtype=INT64)
    every = put("Mul", [size, put.constant("edges", list(range(blocks + 1)))], dtype=INT64)
    count = blocks + 1
    split = ir.Node("", "Split", [every], [ir.AttrInt64("num_outputs", count)], num_outputs=count, name=put.name())
    for output in split.outputs:
        output.name, output.dtype = put.name(), INT64
    put.graph.insert_before(put.place, split)
    return split.outputs


class Inserter:
    """Puts nodes before another, which names them."""

    def __init__(self, graph: ir.Graph, place: ir.Node) -> None:
        self.graph, self.place, self.count = graph, place, 0

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        output = ir.Value(name=self.name(), type=ir.TensorType(dtype))
        self.graph.insert_before(
            self.place, ir.Node("", op_type, inputs, attributes, outputs=[output], name=output.name)
        )
        return output

    def shape_of(self, value: ir.Value, axis: int) -> ir.Value:
        """int64 [1]."""
        return self("Shape", [value], [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)], INT64)

    def constant(self, name: str, numbers: list[int]) -> ir.Value:
        return self._constant(name, ir.tensor(numbers, dtype=INT64))

    def number(self, name: str, number: float) -> ir.Value:
        return self._constant(name, ir.tensor([number], dtype=ir.DataType.FLOAT))

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        name = f"{self.place.outputs[0].name}.{name}"
        if name not in self.graph.initializers:
            tensor.name = name
            self.graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self.graph.initializers[name]

    def name(self) -> str:
        self.count += 1
        return f"{self.place.outputs[0].name}.{self.count}"
