"""Caches that several layers read, for ONNX Runtime's own attention: written once, before the first of them.

Given no new keys the operator reads a cache with queries of any number, up to that of the slots in use, and leaves it
as it is. It wants the cache as an output all the same, so each layer hands it on to the next: a graph has as many
outputs of it as there are hands, all of which are bound to the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import Builder
from arforge.runner.step_graph import again_name

if TYPE_CHECKING:
    from arforge.engines.onnxruntime_caches import Folded, Write

FLOAT, INT8, INT64 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT64


@dataclass(frozen=True)
class Lengths:
    """Of the operator's queries, and of what they may see."""

    width: ir.Value  # [1] queries
    used: ir.Value  # [1] slots
    last: ir.Value  # [1] int32, the last of those slots
    total: ir.Value  # int32, slots
    flat: ir.Value  # the shape of queries: 1, width, the rest


@dataclass(frozen=True)
class Operands:
    """What the operator is given up to the rotary tables, and what it does with that."""

    inputs: list[ir.Value | None]
    attributes: dict[str, int | float | str]
    lengths: Lengths
    present: list[ir.Value]  # the caches behind it


class SharedCaches:
    """Those of one graph."""

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self._hands: dict[ir.Value, list[ir.Value]] = {}  # by what was written: the outputs, from the next to the last

    def operands(self, build: Builder, query: ir.Value, writes: list[Write], kind: ir.DataType) -> Operands:
        """A layer's, whose keys and values others read too."""
        folded, lengths = self._folded, self._folded.queries
        for write in writes:
            if write.written not in self._hands:
                self._write(build, write, kind)
        empty = build("Mul", [folded.rows, folded.numbers(writes[0].heads * writes[0].size)], INT64)
        shape = build("Concat", [folded.numbers(1, 0), empty], INT64, axis=0)
        nothing = build("ConstantOfShape", [shape], FLOAT)
        given = [folded.flat(build, query, lengths), nothing, nothing]
        given += [*(self._hands[write.written].pop(0) for write in writes), lengths.last, lengths.total]
        present = [self._hands[write.written][0] for write in writes]
        return Operands([*given, None, None, None], {}, lengths, present)

    def _write(self, build: Builder, write: Write, kind: ir.DataType) -> None:
        """Write what is new, rounded as the operator does, and name all outputs."""
        folded, name, readers = self._folded, str(write.cache.name), write.readers
        shape = build("Concat", [folded.numbers(1, -1), folded.tokens.width, folded.numbers(write.size)], INT64, axis=0)
        codes = build("Reshape", [write.new, shape], FLOAT)
        if kind == INT8:
            each = [folded.tiled(build, name), folded.numbers(1, -1, 1, write.size)]
            quotients = build("Div", [codes, build("Reshape", each, FLOAT)], FLOAT)
            unit = build.constant(f"{name}.unit", np.array(1, np.float32))
            codes = build(
                "QuantizeLinear", [quotients, unit, build.constant(f"{name}.zero", np.array(0, np.int8))], INT8
            )
        last = folded.fold(write, kind)
        others = [ir.Value(name=again_name(name, hand), shape=last.shape, type=last.type) for hand in range(readers)]
        given, axis = [write.cache, codes, folded.first_slot], [ir.AttrInt64("axis", 2)]
        folded.graph.insert_before(build.place, ir.Node("", "TensorScatter", given, axis, outputs=others[:1]))
        folded.graph.outputs.extend(others)
        self._hands[write.written] = [*others, last]
