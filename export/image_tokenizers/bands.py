"""Bounds what a decoder's activations take in memory: from the first upsampling on, some rows at a time.

Of 720x720 pixels with 512 channels one tensor is 1.1 GB, and ONNX Runtime holds several. In bands, activations
are as many tensors as there are bands, never one: a convolution takes a row of each neighbour along, norms add the
bands' sums. What is held whole is what the architecture asks for: the ends of a residual block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.export.image_tokenizers.attention import INT64, Inserter

BAND = 1 << 27  # bytes of a band of the largest activations, for one image
ROWS = 2  # the dimension of an image's rows; of tokens' rows, where pixels of a token have dimensions of their own
LAST = 2**63 - 1
FLOAT, BYTES = ir.DataType.FLOAT, ir.DataType.FLOAT.itemsize
ELEMENTWISE = ("Add", "Clip", "Div", "Mul", "Sigmoid", "Sub")
Bands = list[ir.Value]


def bands_for(model: ir.Model, cells: int) -> int:
    """Into how many bands the activations of an image of so many tokens are split."""
    scale, largest = 1, 0
    for node in model.graph:
        scale *= 2 if node.op_type == "Resize" else 1
        if node.op_type == "Conv" and scale > 1:
            largest = max(largest, scale**2 * max(channels(node, 0), channels(node, 1)))
    return max(1, math.ceil(largest * cells * BYTES / BAND))


def channels(conv: ir.Node, axis: int) -> int:
    """Of a convolution's outputs (axis 0) or inputs (1)."""
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return int(weight.shape.numpy()[axis])


def decode_in_bands(model: ir.Model, bands: int) -> int:
    """Split what follows the first upsampling into so many bands. Returns how many convolutions were.

    An image of fewer rows of tokens than bands has empty ones, of which a convolution is given one row.
    """
    resizes = [node for node in model.graph if node.op_type == "Resize"] if bands > 1 else []
    if not resizes:
        return 0
    splitter = Splitter(model, resizes[0], bands)
    nodes = list(model.graph)
    for node in nodes[nodes.index(resizes[0]) :]:
        splitter.take(node)
    RemoveUnusedNodesPass()(model)
    return splitter.convolutions


class Splitter:
    """Takes a graph's nodes in their order and puts, for each that reads bands, as many in its place."""

    def __init__(self, model: ir.Model, first: ir.Node, bands: int) -> None:
        source = first.inputs[0]
        assert source is not None
        self.graph, self.bands, self.convolutions = model.graph, bands, 0
        self.put = Inserter(model.graph, first)
        self.images, _, rows, self.columns = (self.put.shape_of(source, axis) for axis in range(4))
        self.edges = [self.edge(rows, index) for index in range(bands + 1)]
        self.rows = [self.integers("Sub", after, before) for before, after in pairwise(self.edges)]
        self.pixels = self.integers("Mul", rows, self.columns)
        self.split: dict[ir.Value, tuple[Bands, int]] = {source: (self.slices(source), 1)}  # and pixels of a token
        self.shapes: dict[tuple[int, ...], ir.Value] = {}  # of bands, and of the row beyond an image's edge

    def edge(self, rows: ir.Value, index: int) -> ir.Value:
        return self.integers("Div", self.integers("Mul", rows, index), self.bands)

    def integers(self, op_type: str, first: ir.Value, second: ir.Value | int) -> ir.Value:
        return self.put(op_type, [first, self.integer(second)], dtype=INT64)

    def integer(self, value: ir.Value | int) -> ir.Value:
        """int64 [1]."""
        return self.put.constant(f"is_{value}", [value]) if isinstance(value, int) else value

    def slices(self, whole: ir.Value) -> Bands:
        """The bands of what has a row for each row of tokens."""
        return [self.rows_of(whole, *edges) for edges in pairwise(self.edges)]

    def rows_of(self, value: ir.Value, first: ir.Value | int, end: ir.Value | int) -> ir.Value:
        return self.put("Slice", [value, self.integer(first), self.integer(end), self.integer(ROWS)])

    def take(self, node: ir.Node) -> None:
        found = [value for value in node.inputs if value in self.split]
        if not found:
            return
        if node is not self.put.place:
            self.put = Inserter(self.graph, node)
        rules: dict[str, Callable[[ir.Node, Bands, int], Bands]] = {
            "Conv": self.convolve,
            "Resize": self.resize,
            "GroupNormalization": self.norm,
            "Reshape": self.reshape,
            **dict.fromkeys(ELEMENTWISE, self.each),
        }
        parts, scale = self.split[found[0]]
        if node.op_type not in rules:
            for value in found:
                whole = self.put("Concat", self.split[value][0], [ir.AttrInt64("axis", ROWS)])
                whole.shape = value.shape
                node.replace_input_with(list(node.inputs).index(value), whole)
            return
        made = rules[node.op_type](node, parts, scale)
        self.split[node.outputs[0]] = made, 2 * scale if node.op_type == "Resize" else scale

    def each(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        """Numbers on their own, beside those of other bands or of a token, or one for all."""
        operands = [self.operand(value) for value in node.inputs]
        return [self.put(node.op_type, given, node.attributes.values()) for given in zip(*operands, strict=True)]

    def operand(self, value: ir.Value | None) -> Sequence[ir.Value | None]:
        if value in self.split:
            return self.split[value][0]
        if value is None or value.shape is None or len(value.shape) <= ROWS or value.shape[ROWS] == 1:
            return [value] * self.bands
        return self.slices(value)

    def resize(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        return [self.put("Resize", [part, *node.inputs[1:]], node.attributes.values()) for part in parts]

    def reshape(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        """To a dimension for the rows of tokens and one for those of a token's pixels, or back."""
        shape = node.outputs[0].shape
        assert shape is not None
        kept = [ir.AttrInt64("allowzero", 1)]
        targets = [self.shape(index, int(str(shape[1])), scale, len(shape)) for index in range(self.bands)]
        return [self.put("Reshape", [part, target], kept) for part, target in zip(parts, targets, strict=True)]

    def shape(self, band: int, width: int, scale: int, rank: int) -> ir.Value:
        """That of a band with so many channels, of rank 4 or 6."""
        if (band, width, scale, rank) not in self.shapes:
            sides = [self.rows[band], self.columns]
            if rank == 4:
                sides = [self.integers("Mul", side, scale) for side in sides]
            else:
                side = self.integer(scale)
                sides = [sides[0], side, sides[1], side]
            given = [self.images, self.integer(width), *sides]
            self.shapes[band, width, scale, rank] = self.put("Concat", given, [ir.AttrInt64("axis", 0)], INT64)
        return self.shapes[band, width, scale, rank]

    def convolve(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        """Each band between a row of its neighbours, of zeros beyond the image; one row too many is computed.

        Without that, an empty band would have no row at all, which ONNX Runtime refuses.
        """
        self.convolutions += 1
        pad = node.attributes["kernel_shape"].as_ints()[0] // 2
        attributes = [value for name, value in node.attributes.items() if name != "pads"]
        attributes.append(ir.AttrInt64s("pads", [0, pad, 1, pad]))
        made = []
        for part, given in zip(range(self.bands), self.between(node, parts, scale) if pad else parts, strict=True):
            found = self.put("Conv", [given, *node.inputs[1:]], attributes)
            end = self.integers("Mul", self.rows[part], scale)
            made.append(self.rows_of(found, 0, end))
        return made

    def between(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        """Each band with the nearest row above it and below it."""
        outside = self.outside(channels(node, 1), scale)
        above, below = [outside], [outside]
        for part in parts[:-1]:
            above.append(self.rows_of(self.joined(above[-1], self.rows_of(part, -1, LAST)), -1, LAST))
        for part in reversed(parts[1:]):
            below.append(self.rows_of(self.joined(self.rows_of(part, 0, 1), below[-1]), 0, 1))
        return [self.joined(*three) for three in zip(above, parts, reversed(below), strict=True)]

    def joined(self, *values: ir.Value) -> ir.Value:
        return self.put("Concat", values, [ir.AttrInt64("axis", ROWS)])

    def outside(self, width: int, scale: int) -> ir.Value:
        """A row of zeros."""
        if (width, scale) not in self.shapes:
            sides = [self.integer(1), self.integers("Mul", self.columns, scale)]
            given = [self.images, self.integer(width), *sides]
            shape = self.put("Concat", given, [ir.AttrInt64("axis", 0)], INT64)
            self.shapes[width, scale] = self.put("ConstantOfShape", [shape])
        return self.shapes[width, scale]

    def norm(self, node: ir.Node, parts: Bands, scale: int) -> Bands:
        """The mean and the deviation of each group are those of all bands; then one factor and one term a channel."""
        put, (_, weight, bias) = self.put, node.inputs
        assert weight is not None
        assert bias is not None
        assert weight.shape is not None
        width, groups = int(weight.shape.numpy()[0]), node.attributes["num_groups"].as_int()
        apart = put.constant("groups", [0, groups, -1])
        grouped = [put("Reshape", [part, apart]) for part in parts]
        size = self.integers("Mul", self.pixels, scale**2 * width // groups)
        count = put("Cast", [size], [ir.AttrInt64("to", FLOAT)])
        mean, square = (put("Div", [self.sum(op_type, grouped), count]) for op_type in ("ReduceSum", "ReduceSumSquare"))
        variance = put("Sub", [square, put("Mul", [mean, mean])])
        epsilon = put.number("epsilon", node.attributes["epsilon"].as_float())
        deviation = put("Sqrt", [put("Add", [variance, epsilon])])
        by_group, by_channel = put.constant("by_group", [1, groups, -1]), put.constant("by_channel", [0, width, 1, 1])
        factor = put("Div", [put("Reshape", [weight, by_group]), deviation])
        term = put("Sub", [put("Reshape", [bias, by_group]), put("Mul", [mean, factor])])
        factor, term = (put("Reshape", [value, by_channel]) for value in (factor, term))
        return [put("Add", [put("Mul", [part, factor]), term]) for part in parts]

    def sum(self, op_type: str, grouped: Bands) -> ir.Value:
        """Over all bands, [images, groups, 1]."""
        axis = self.integer(2)
        sums = [self.put(op_type, [part, axis]) for part in grouped]
        return self.put("ReduceSum", [self.put("Concat", sums, [ir.AttrInt64("axis", 2)]), axis])
