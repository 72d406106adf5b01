"""Attention without copies of the caches at any width: the lowering "view".

Above width 1 TensorRT-RTX's attention kernel wants keys and values in memory order [slots, rows * heads, head_size],
and copies caches of any other order in every step. So a cache lies in that order, [1, 1, slots, rows * heads *
head_size] to TensorRT, whose in-place update takes four dimensions; and since a Reshape of an updated cache is always a
copy, attention reads a second input, a view, which the runner binds at the address of its cache.

Nothing tells TensorRT that the two are the same memory. So each attention waits: its mask is And-ed with a comparison
of one element of both updated caches, which always holds. `check_views` looks at the order in the built engine.

In the closed form each view is a Reshape of its updated cache, which is what it stands for: ONNX Runtime runs that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import HIDDEN, Builder, attention_nodes
from arforge.engines.profiles import Profiles
from arforge.runner.backends.tensorrt_library import RTX
from arforge.runner.errors import EngineError
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.step_graph import ROW_HEADS, ROW_VALUES, cache_names, view_name, written_name

Rows = int | ir.SymbolicDim | None
BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True)
class View:
    """A cache as attention reads it, [slots, rows * kv_heads, head_size]."""

    value: ir.Value
    updated: ir.Value  # the cache that it is a view of
    kv_heads: int


def profiles_for_views(target: str, profiles: Profiles, schedules: Iterable[Schedule]) -> Profiles:
    """The same profiles, without masks that rows make for themselves: all rows are at one place.

    Raises EngineError where views would not do: for a library whose engines cannot be looked into, and for several
    images that are at places of their own.
    """
    if target != RTX:
        raise EngineError(
            f"--attention view rests on the list of layers that {RTX} gives, {target} gives none: use --attention auto"
        )
    ahead = [schedule.specification for schedule in schedules if schedule.jacobi]
    if ahead and any(profile.images > 1 for profile in profiles.profiles):
        raise EngineError(
            f"in {ahead[0]} images are at places of their own, and with views all rows write to one place: build it "
            "for --images 1, or use --attention auto"
        )
    return replace(profiles, own_mask=False)


def attend_through_views(model: ir.Model, caches: int) -> None:
    """Turn a lowered step with Attention nodes into the closed form, in place. All rows write from one slot on."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    own = [inputs[name] for name in cache_names(caches)]
    for node in [node for cache in own for node, _ in cache.uses() if node.op_type == "Shape"]:
        node.replace_input_with(0, inputs["tokens"])  # which has as many rows
    build = Builder(graph, next(iter(graph)))
    first = build("Slice", [inputs["write_index"], *span(build, 1)], INT64)
    views = {view.updated: view for view in (turn(graph, cache, first) for cache in own)}
    masks: dict[tuple[object, ...], ir.Value] = {}
    for node in attention_nodes(model):
        attend(graph, node, views, masks)


def turn(graph: ir.Graph, cache: ir.Value, first: ir.Value) -> View:
    """Let a cache lie in memory order, updated from slot `first` on, and make its view."""
    update = next(node for node, _ in cache.uses() if node.op_type == "TensorScatter")
    new, updated, dtype = update.inputs[1], update.outputs[0], cache.dtype
    assert new is not None
    assert dtype is not None
    assert cache.shape is not None
    rows, heads, slots, size = cache.shape
    assert isinstance(heads, int)
    assert isinstance(slots, int)
    assert isinstance(size, int)
    build = Builder(graph, update)
    turned = build("Transpose", [new], dtype, perm=[2, 0, 1, 3])
    flat = build("Reshape", [turned, build.constant("flat", np.array([0, -1]))], dtype)
    update.replace_input_with(1, build("Unsqueeze", [flat, build.constant("around", np.array([0, 1]))], dtype))
    update.replace_input_with(2, first)
    fixed = isinstance(rows, int)
    cache.shape = updated.shape = ir.Shape([1, 1, slots, rows * heads * size if fixed else ROW_VALUES])
    shape = ir.Shape([slots, rows * heads if fixed else ROW_HEADS, size])
    return View(add_view(graph, str(cache.name), updated, shape), updated, heads)


def add_view(graph: ir.Graph, cache: str, updated: ir.Value, shape: ir.Shape) -> ir.Value:
    """A cache of that name in another shape, [slots, rows * kv_heads, head_size], next to its update."""
    update = updated.producer()
    assert update is not None
    view = ir.Value(name=view_name(cache), type=updated.type, shape=shape)
    sizes = Builder(graph, update).constant("view", np.array([shape[0], -1, shape[2]]))
    graph.insert_after(update, ir.Node("", "Reshape", [updated, sizes], outputs=[view], name=f"{view.name}.reshape"))
    return view


def attend(
    graph: ir.Graph, node: ir.Node, views: dict[ir.Value, View], masks: dict[tuple[object, ...], ir.Value]
) -> None:
    """Replace one Attention by products and a softmax over [rows * kv_heads, queries, slots].

    Grouped heads: the queries of a group stand below each other in one product with their one key head.
    """
    query, key, value, mask = node.inputs[:4]
    assert query is not None
    assert key is not None
    assert value is not None
    assert mask is not None
    assert query.shape is not None
    rows, heads, size, dtype = query.shape[0], query.shape[1], query.shape[3], query.dtype
    assert isinstance(heads, int)
    assert isinstance(size, int)
    assert dtype is not None
    keys, values = views[key], views[value]
    group = heads // keys.kv_heads
    build = Builder(graph, node)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / sqrt(size)
    scaled = build("Mul", [query, build.constant("scale", np.array(scale, dtype.numpy()))], dtype)
    queries = join(build, scaled, rows, keys.kv_heads, size)
    if (mask, group) not in masks:
        masks[mask, group] = spread(build, mask, keys.kv_heads, group)
    if (mask, key, value, group) not in masks:
        masks[mask, key, value, group] = waiting(build, masks[mask, group], (keys.updated, values.updated))
    turned = build("Transpose", [keys.value], dtype, perm=[1, 2, 0])
    scores = build.cast(build("MatMul", [queries, turned], dtype), FLOAT)
    hidden = build.constant("hidden", np.array(HIDDEN, np.float32))
    seen = build("Where", [masks[mask, key, value, group], scores, hidden], FLOAT)
    weights = build.cast(build("Softmax", [seen], FLOAT, axis=-1), dtype)
    read = build("MatMul", [weights, build("Transpose", [values.value], dtype, perm=[1, 0, 2])], dtype)
    result = part(build, read, rows, heads, keys.kv_heads, size)
    result.shape = query.shape
    node.outputs[0].replace_all_uses_with(result)
    graph.remove(node, safe=True)


def join(build: Builder, value: ir.Value, rows: Rows, kv_heads: int, last: int) -> ir.Value:
    """[rows, heads, width, last] as [rows * kv_heads, heads / kv_heads * width, last].

    One Reshape tells the size of all dimensions but one; where rows are free beside width, Transposes help, which cost
    a kernel an attention.
    """
    dtype = value.dtype
    assert dtype is not None
    if isinstance(rows, int):
        return build(
            "Reshape", [value, build.constant(f"{value.name}.joined", np.array([rows * kv_heads, -1, last]))], dtype
        )
    grouped = build(
        "Reshape", [value, build.constant(f"{value.name}.grouped", np.array([0, kv_heads, -1, last]))], dtype
    )
    turned = build("Transpose", [grouped], dtype, perm=[2, 0, 1, 3])
    joined = build("Reshape", [turned, build.constant(f"{value.name}.joined", np.array([0, -1, last]))], dtype)
    return build("Transpose", [joined], dtype, perm=[1, 0, 2])


def part(build: Builder, value: ir.Value, rows: Rows, heads: int, kv_heads: int, last: int) -> ir.Value:
    """The reverse of `join`."""
    dtype = value.dtype
    assert dtype is not None
    if isinstance(rows, int):
        return build("Reshape", [value, build.constant("parted", np.array([rows, heads, -1, last]))], dtype)
    turned = build("Transpose", [value], dtype, perm=[1, 0, 2])
    parted = build("Reshape", [turned, build.constant("parted", np.array([0, -1, kv_heads, last]))], dtype)
    grouped = build("Transpose", [parted], dtype, perm=[1, 2, 0, 3])
    return build("Reshape", [grouped, build.constant("apart", np.array([0, heads, -1, last]))], dtype)


def spread(build: Builder, mask: ir.Value, kv_heads: int, group: int) -> ir.Value:
    """A mask [rows, 1, width, slots] for scores [rows * kv_heads, group * width, slots]; one row is for all."""
    assert mask.shape is not None
    rows, slots = mask.shape[0], mask.shape[3]
    assert isinstance(slots, int)
    if group > 1:
        mask = build("Concat", [mask] * group, BOOL, axis=2)
    if rows == 1:
        return build("Squeeze", [mask, build.constant("row", np.array([0]))], BOOL)
    return join(build, build("Concat", [mask] * kv_heads, BOOL, axis=1), rows, kv_heads, slots)


def waiting(build: Builder, mask: ir.Value, updated: tuple[ir.Value, ...]) -> ir.Value:
    """The same mask, which is there only when both caches are updated."""
    first = span(build, 4)
    for value in updated:
        dtype = value.dtype
        assert dtype is not None
        one = build("Slice", [value, *first], dtype)
        alone = build("Squeeze", [one, build.constant(f"{value.name}.alone", np.array([0]))], dtype)
        beyond = build("Greater", [alone, build.constant(f"{value.name}.all", np.array(np.inf, dtype.numpy()))], BOOL)
        mask = build("And", [mask, build("Not", [beyond], BOOL)], BOOL)
    return mask


def span(build: Builder, rank: int) -> list[ir.Value]:
    """Where a Slice of the first element begins and ends, and its axes."""
    places = (np.zeros(rank, np.int64), np.ones(rank, np.int64), np.arange(rank))
    return [build.constant(f"{name}{rank}", place) for name, place in zip(("from", "to", "axes"), places, strict=True)]


def cut_views(model: ir.Model, caches: int) -> None:
    """From the closed form to what TensorRT is given: each view becomes an input."""
    graph = model.graph
    names = {view_name(name) for name in cache_names(caches)}
    for node in [node for node in graph if node.outputs[0].name in names]:
        view = node.outputs[0]
        given = ir.Value(name=view.name, type=view.type, shape=view.shape)
        view.replace_all_uses_with(given)
        sizes = node.inputs[1]
        assert sizes is not None
        graph.remove(node, safe=True)
        del graph.initializers[str(sizes.name)]
        graph.inputs.append(given)


def close_views(model: ir.Model, caches: int) -> None:
    """The reverse of `cut_views`."""
    graph = model.graph
    inputs, outputs = ({str(value.name): value for value in part} for part in (graph.inputs, graph.outputs))
    for name in cache_names(caches):
        given, updated = inputs[view_name(name)], outputs[written_name(name)]
        assert given.shape is not None
        graph.inputs.remove(given)
        given.replace_all_uses_with(add_view(graph, name, updated, given.shape))
