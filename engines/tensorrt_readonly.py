"""Caches that an engine only reads, for versions of TensorRT that update none in place.

The keys and values of a step are outputs of it, which the runner puts into the caches behind it. Attention sees both
parts where they lie: the cache, in which the slots that the step will write are hidden, and the step's own rows. Each
has a product with the queries and one with its weights, under one softmax over both.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import HIDDEN, Builder, attention_nodes
from arforge.runner.errors import EngineError
from arforge.runner.step_graph import cache_names, update_name, written_name

FLOAT, BOOL, INT64 = ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64
Parts = tuple[ir.Value, ir.Value]
"""What is there once for the cache and once for the step's own rows."""


def read_only_caches(model: ir.Model, caches: int, slots: int) -> None:
    """Rewrite a step graph of fixed `slots`, in place.

    Raises EngineError for an attention of other keys and values than those of a cache that the step writes to.
    """
    graph = model.graph
    written = {of(node, 0).name: node for node in graph if node.op_type == "TensorScatter"}
    if set(written) != set(cache_names(caches)):
        raise EngineError("the graph does not write each cache once: it is not a step graph")
    masks: dict[tuple[ir.Value, int], Parts] = {}
    for node in attention_nodes(model):
        keys, values = parts_of(node, 1), parts_of(node, 2)
        result = attend(Builder(graph, node), node, keys, values, masks, slots)
        result.shape = node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(result)
        graph.remove(node, safe=True)
    outputs = {value.name: index for index, value in enumerate(graph.outputs)}
    for cache, node in written.items():
        update = of(node, 1)
        update.name = update_name(str(cache))
        graph.outputs[outputs[written_name(str(cache))]] = update
        graph.remove(node, safe=True)


def parts_of(node: ir.Node, index: int) -> Parts:
    """The cache that an attention reads, and this step's rows of it."""
    scatter = of(node, index).producer()
    if scatter is None or scatter.op_type != "TensorScatter":
        raise EngineError(f"attention {node.name} reads {of(node, index).name}, which is no cache")
    return of(scatter, 0), of(scatter, 1)


def attend(
    build: Builder,
    node: ir.Node,
    keys: Parts,
    values: Parts,
    masks: dict[tuple[ir.Value, int], Parts],
    slots: int,
) -> ir.Value:
    """[rows, heads, queries, head_size]; scores and softmax are float32. Heads of a group are one product's rows.

    Keys stand at the left of their product, and a product has two columns at least: else the compiler turns the cache
    around in every step, or puts it beside zeros.
    """
    query, mask = of(node, 0), of(node, 3)
    assert query.shape is not None
    assert keys[0].shape is not None
    heads, kv_heads, head_size = query.shape[1], keys[0].shape[1], query.shape[3]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    assert isinstance(head_size, int)
    dtype, group = query.dtype, heads // kv_heads
    assert dtype is not None
    if (mask, group) not in masks:
        masks[mask, group] = divide_mask(build, mask, group, slots)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(head_size)
    scaled = build("Mul", [query, build.constant("scale", np.array(scale, dtype.numpy()))], dtype)
    count = build("Shape", [query], INT64, start=2, end=3)
    if group > 1:
        stack = build.constant("stack", np.array([0, kv_heads, -1, head_size]))
        scaled = build("Reshape", [scaled, stack], dtype)
    else:
        one, two = build.constant("one", np.array([1])), build.constant("two", np.array([2]))
        shape = build("Concat", [one, one, build("Max", [count, two], INT64), one], INT64, axis=0)
        scaled = build("Expand", [scaled, shape], dtype)
    columns = build("Transpose", [scaled], dtype, perm=[0, 1, 3, 2])
    hidden = build.constant("hidden", np.array(HIDDEN, np.float32))
    scores = []
    for key, seen in zip(keys, masks[mask, group], strict=True):
        raw = build("Transpose", [build("MatMul", [key, columns], dtype)], dtype, perm=[0, 1, 3, 2])
        scores.append(build("Where", [seen, build.cast(raw, FLOAT), hidden], FLOAT))
    weights = softmax(build, scores)
    results = [build("MatMul", [build.cast(w, dtype), v], dtype) for w, v in zip(weights, values, strict=True)]
    result = build("Add", results, dtype)
    if group > 1:
        unstack = build.constant("unstack", np.array([0, heads, -1, head_size]))
        return build("Reshape", [result, unstack], dtype)
    bounds = build.constant("first", np.array([0])), count, build.constant("axis", np.array([2]))
    return build("Slice", [result, *bounds], dtype)


def softmax(build: Builder, scores: list[ir.Value]) -> list[ir.Value]:
    """Over the last axis of both parts together, each where it lies."""
    last = build.constant("last", np.array([-1]))
    largest = build("Max", [build("ReduceMax", [part, last], FLOAT, keepdims=1) for part in scores], FLOAT)
    raised = [build("Exp", [build("Sub", [part, largest], FLOAT)], FLOAT) for part in scores]
    total = build("Add", [build("ReduceSum", [part, last], FLOAT, keepdims=1) for part in raised], FLOAT)
    return [build("Div", [part, total], FLOAT) for part in raised]


def divide_mask(build: Builder, mask: ir.Value, group: int, slots: int) -> Parts:
    """Of a mask [rows or 1, 1, queries, slots]: what is seen of the cache, and of the step's own rows.

    The step's rows belong at the slots from `write_index` on, where the cache still holds what was there before. A
    mask of one row is for rows that write to the same slots. `group`: how often it stands below itself.
    """
    inputs = {value.name: value for value in build.graph.inputs}
    first = inputs["write_index"]
    assert mask.shape is not None
    if mask.shape[0] == 1:
        bounds = [build.constant(name, np.array([at])) for name, at in (("zero", 0), ("row", 1))]
        first = build("Slice", [first, *bounds], INT64)
    first = build("Unsqueeze", [first, build.constant("around", np.array([1, 2, 3]))], INT64)
    width = build("Shape", [inputs["tokens"]], INT64, start=1, end=2)
    places = build.constant("slots", np.arange(slots))
    before = build("Less", [places, first], BOOL)
    after = build("GreaterOrEqual", [places, build("Add", [first, width], INT64)], BOOL)
    other = build("And", [mask, build("Or", [before, after], BOOL)], BOOL)
    start, step = build.constant("start", np.array(0)), build.constant("step", np.array(1))
    count = build("Squeeze", [width, build.constant("only", np.array([0]))], INT64)
    own = build("Add", [first, build("Range", [start, count, step], INT64)], INT64)
    shape = build("Concat", [build("Shape", [mask], INT64, start=0, end=3), width], INT64, axis=0)
    seen = build("GatherElements", [mask, build("Expand", [own, shape], INT64)], BOOL, axis=3)
    if group > 1:
        other, seen = (build("Concat", [part] * group, BOOL, axis=2) for part in (other, seen))
    return other, seen


def of(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
