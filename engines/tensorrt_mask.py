"""A mask that the graph makes itself, for engines of next-token decoding: each row sees what lies before its inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import Builder

INT64 = ir.DataType.INT64


def make_mask(model: ir.Model, slots: int) -> None:
    """Replace the input `mask` by slot <= write_index + place, for each row, in place."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    mask, tokens, first = inputs["mask"], inputs["tokens"], inputs["write_index"]
    assert mask.shape is not None
    build = Builder(graph, next(iter(graph)))
    zero, one = build.constant("zero", np.array(0)), build.constant("one", np.array(1))
    width = build("Squeeze", [build("Shape", [tokens], INT64, start=1, end=2)], INT64)
    places = build("Range", [zero, width, one], INT64)
    own = build("Add", [build("Unsqueeze", [first, build.constant("after", np.array([1]))], INT64), places], INT64)
    line = build("Unsqueeze", [own, build.constant("around", np.array([1, 3]))], INT64)
    made = build("LessOrEqual", [build.constant("slots", np.arange(slots)), line], ir.DataType.BOOL)
    made.shape = ir.Shape([first.shape[0] if first.shape is not None else None, 1, mask.shape[2], slots])
    mask.replace_all_uses_with(made)
    graph.inputs.remove(mask)
