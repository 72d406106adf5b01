"""Operators of opsets 21 to 24, and those that older versions of TensorRT cannot run as they are, in opset 20's.

Weights in blocks of 4 bits stay, whose operator opset 21 has: TensorRT's parser reads them since 10.0, and checks no
number of an opset.

Normalisations and rotations become elementwise, and a running sum two small products, since TensorRT before 10.8 makes
a loop of `CumSum`, and captures no CUDA graph of a loop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from arforge.engines.attention import Builder
from arforge.runner.errors import EngineError

OPSET, WITH_BLOCKS = 20, 21
FLOAT, BOOL, INT64 = ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64
NEWER = ("Attention", "TensorScatter", "RMSNormalization", "RotaryEmbedding", "Swish")  # which no opset up to 20 has


def to_opset_20(model: ir.Model) -> None:
    """Rewrite a step graph or an image decoder, in place. Raises EngineError for what has no such form here."""
    turns: dict[tuple[ir.Value, ir.Value, bool], ir.Value] = {}  # cosines and sines, which all layers read
    rewrites: dict[str, Callable[[Builder, ir.Node], ir.Value]] = {
        "RMSNormalization": rms_normalization,
        "GroupNormalization": group_normalization,
        "RotaryEmbedding": lambda build, node: rotary_embedding(build, node, turns),
        "CumSum": running_sum,
    }
    for node in list(model.graph):
        if (rewrite := rewrites.get(node.op_type)) is not None:
            (output,) = node.outputs
            result = rewrite(Builder(model.graph, node), node)
            result.shape = output.shape
            output.replace_all_uses_with(result, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            result.name = output.name
        elif has_blocks(node):
            node.attributes.pop("output_dtype", None)  # of opset 23: it is the type of the scales anyway
            if node.outputs[0].dtype != of(node, 1).dtype:
                raise EngineError(f"{node.name} has scales of {type_of(of(node, 1)).name} and other values")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            float_quantizer(model.graph, node)
    products_of_floats(model.graph)
    if left := {node.op_type for node in model.graph.all_nodes()} & set(NEWER):
        raise EngineError(f"the graph has {', '.join(sorted(left))}, which opset {OPSET} lacks")
    model.opset_imports[""] = WITH_BLOCKS if any(map(has_blocks, model.graph)) else OPSET


def rms_normalization(build: Builder, node: ir.Node) -> ir.Value:
    """In float32 inside, as its `stash_type` says; over the last axis."""
    value, scale = of(node, 0), of(node, 1)
    if node.attributes["axis"].as_int() != -1:
        raise EngineError(f"RMSNormalization over other axes than the last has no form in opset {OPSET}")
    dtype = type_of(value)
    wide = build.cast(value, FLOAT)
    last = build.constant("last", np.array([-1]))
    mean = build("ReduceMean", [build("Mul", [wide, wide], FLOAT), last], FLOAT, keepdims=1)
    epsilon = build.constant("epsilon", np.array(node.attributes["epsilon"].as_float(), np.float32))
    length = build("Sqrt", [build("Add", [mean, epsilon], FLOAT)], FLOAT)
    return build("Mul", [build.cast(build("Div", [wide, length], FLOAT), dtype), scale], dtype)


def group_normalization(build: Builder, node: ir.Node) -> ir.Value:
    """[images, channels, ...], whose scale and bias are a channel's from opset 21 on, a group's before it."""
    value, scale, bias = of(node, 0), of(node, 1), of(node, 2)
    dtype, groups = type_of(value), node.attributes["num_groups"].as_int()
    apart = build("Reshape", [value, build.constant("groups", np.array([0, groups, -1]))], dtype)
    one, zero = (build.constant(name, np.full(groups, n, dtype.numpy())) for name, n in (("one", 1), ("zero", 0)))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    normal = build("InstanceNormalization", [apart, one, zero], dtype, epsilon=epsilon)
    back = build("Reshape", [normal, build("Shape", [value], INT64)], dtype)
    assert value.shape is not None
    axes = build.constant("around", np.arange(1, len(value.shape) - 1))  # behind the channels
    factor, term = (build("Unsqueeze", [each, axes], dtype) for each in (scale, bias))
    return build("Add", [build("Mul", [back, factor], dtype), term], dtype)


def rotary_embedding(build: Builder, node: ir.Node, turns: dict[tuple[ir.Value, ir.Value, bool], ir.Value]) -> ir.Value:
    """[rows, heads, width, head_size] turned by the angles of each row's positions [rows, width]."""
    value, positions = of(node, 0), of(node, 3)
    if "rotary_embedding_dim" in node.attributes and node.attributes["rotary_embedding_dim"].as_int():
        raise EngineError(f"RotaryEmbedding of a part of a head has no form in opset {OPSET} here")
    assert value.shape is not None
    heads, head_size = value.shape[1], value.shape[3]
    assert isinstance(heads, int)
    assert isinstance(head_size, int)
    dtype, pairs = type_of(value), "interleaved" in node.attributes and bool(node.attributes["interleaved"].as_int())
    for name, table in (("cosine", of(node, 1)), ("sine", of(node, 2))):
        if (table, positions, pairs) not in turns:
            axes = build.constant(name, np.array([1, 4] if pairs else [1]))
            angles = build("Gather", [table, positions], dtype, axis=0)
            turns[table, positions, pairs] = build("Unsqueeze", [angles, axes], dtype)
    cosine, sine = (turns[of(node, index), positions, pairs] for index in (1, 2))
    if pairs:
        shape = build.constant("pairs", np.array([0, heads, -1, head_size // 2, 2]))
        value = build("Reshape", [value, shape], dtype)
    first, second = split(build, value, dtype)
    turned = [
        build("Sub", [build("Mul", [first, cosine], dtype), build("Mul", [second, sine], dtype)], dtype),
        build("Add", [build("Mul", [first, sine], dtype), build("Mul", [second, cosine], dtype)], dtype),
    ]
    joined = build("Concat", turned, dtype, axis=-1)
    if not pairs:
        return joined
    return build("Reshape", [joined, build.constant("whole", np.array([0, heads, -1, head_size]))], dtype)


def split(build: Builder, value: ir.Value, dtype: ir.DataType) -> list[ir.Value]:
    """The two halves of the last axis."""
    first = build("Split", [value], dtype, axis=-1, num_outputs=2)
    node = first.producer()
    assert node is not None
    node.resize_outputs(2)
    second = node.outputs[1]
    second.name, second.dtype = f"{first.name}.second", dtype
    return [first, second]


def running_sum(build: Builder, node: ir.Node) -> ir.Value:
    """Float32 [images, width, vocabulary] over the last axis, in blocks: sums inside each, and of those before it."""
    value = of(node, 0)
    assert value.shape is not None
    count = value.shape[-1]
    if not isinstance(count, int) or any(a.as_int() for a in node.attributes.values()):
        raise EngineError(f"CumSum of a free size, backwards or exclusive has no form in opset {OPSET} here")
    block = 1 << (int(count - 1).bit_length() + 1) // 2
    blocks = -(-count // block)
    if missing := blocks * block - count:
        ends = build.constant("ends", np.array([0, 0, 0, 0, 0, missing]))
        value = build("Pad", [value, ends], FLOAT)
    apart = build("Reshape", [value, build.constant("blocks", np.array([0, 0, blocks, block]))], FLOAT)
    own = build.constant("own", np.triu(np.ones((block, block), np.float32)))
    before = build.constant("before", np.triu(np.ones((blocks, blocks), np.float32), 1))
    inside = build("MatMul", [apart, own], FLOAT)
    last = build.constant("last", np.array([-1]))
    totals = build("ReduceSum", [apart, last], FLOAT, keepdims=0)
    offsets = build("Unsqueeze", [build("MatMul", [totals, before], FLOAT), last], FLOAT)
    row = build.constant("row", np.array([0, 0, -1]))
    sums = build("Reshape", [build("Add", [inside, offsets], FLOAT), row], FLOAT)
    if not missing:
        return sums
    bounds = [build.constant(name, np.array([at])) for name, at in (("first", 0), ("end", count), ("axis", 2))]
    return build("Slice", [sums, *bounds], FLOAT)


def has_blocks(node: ir.Node) -> bool:
    """Whether it makes floats of codes of 4 bits."""
    return node.op_type == "DequantizeLinear" and of(node, 0).dtype == ir.DataType.INT4


def float_quantizer(graph: ir.Graph, node: ir.Node) -> None:
    """Quantizers have one type for scales and values before opset 23: float32, so that no scale is rounded."""
    if node.op_type == "QuantizeLinear":
        wide = Builder(graph, node).cast(of(node, 0), FLOAT)
        node.replace_input_with(0, wide)
        return
    node.attributes.pop("output_dtype", None)
    if type_of(of(node, 1)) != FLOAT:
        raise EngineError(f"{node.op_type} has scales of {type_of(of(node, 1)).name}, expected FLOAT")
    node.outputs[0].dtype = FLOAT


def products_of_floats(graph: ir.Graph) -> None:
    """Cast the result of products whose factors became float32 to what it was."""
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type != "MatMul" or output.dtype in (FLOAT, None):
            continue
        if all(value is not None and value.dtype == FLOAT for value in node.inputs):
            narrow = type_of(output)
            readers = [(use.node, use.idx) for use in output.uses()]
            output.dtype = FLOAT
            name = f"{output.name}.narrow"
            result = ir.Value(name=name, shape=output.shape, type=ir.TensorType(narrow))
            attributes = [ir.AttrInt64("to", narrow)]
            graph.insert_after(node, ir.Node("", "Cast", [output], attributes, outputs=[result], name=name))
            for reader, index in readers:
                reader.replace_input_with(index, result)


def of(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def type_of(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype
