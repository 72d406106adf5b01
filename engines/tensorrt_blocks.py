"""Weights in blocks of 4 bits, as TensorRT takes them: signed codes, and scales of the type that it computes in.

TensorRT reads them in the kernel of the product itself. Blocks that the bundle stores keep their codes and, but for
rounding to float16, their scales; others are made of its float weights. Products in blocks of 8 bits, or of a size that
a library does not take, become float.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from arforge.engines.onnxruntime_blocks import WIDEST, Maker, dequantizer, quantized_blocks
from arforge.export.quantization import block_size, unpacked
from arforge.export.stored_values import stored_values
from arforge.export.wide_weights import widen_blocks
from arforge.runner.backends.tensorrt_library import RTX
from arforge.runner.errors import EngineError

FUSED = {"tensorrt": (64, 128), RTX: (32, 64, 128)}
"""Sizes of blocks that each library takes: as TensorRT's documentation has it, and as TensorRT-RTX 1.7.1 builds."""
FLIP = 8  # what tells an unsigned code from a signed one: its highest bit


def blocks_for_tensorrt(model: ir.Model, target: str = RTX) -> int:
    """Give the products of a graph blocks of 4 bits, in place, its other weights being float32 already.

    The last product, which makes the logits, stays float. Returns how many. Raises EngineError if there is none.
    """
    sizes, widened = FUSED[target], set[ir.Value]()
    products = [node for node in model.graph if node.op_type == "MatMul"]
    made = 0
    for node in products:
        weight = node.inputs[1]
        if weight is None:
            continue
        if (stored := dequantizer(weight)) is not None:
            if stored.attributes["block_size"].as_int() in sizes:
                sign(stored)
                made += 1
            elif (codes := stored.inputs[0]) is not None:
                widen_blocks(model, codes, stored)
                widened.add(codes)
        elif weight in widened or node is products[-1]:
            continue
        elif weight.const_value is not None and len(weight.const_value.shape) == 2:
            made += in_blocks(model, node, weight, sizes)
    if not made:
        listed = ", ".join(map(str, sizes))
        raise EngineError(
            f"the graph has no product whose weights blocks fit, which for {target} have {listed} inputs: build fp16"
        )
    return made


def sign(node: ir.Node) -> None:
    """Make stored blocks signed, without zero points; those of several products once."""
    codes, scales = node.inputs[:2]
    assert codes is not None
    assert scales is not None
    assert codes.const_value is not None
    assert scales.const_value is not None
    if codes.dtype == ir.DataType.INT4:
        return
    make(codes, partial(signed, codes.const_value), ir.DataType.INT4)
    make(scales, partial(rounded, scales.const_value), ir.DataType.FLOAT16)
    node.replace_input_with(2, None)
    node.resize_inputs(2)
    for value in node.outputs:
        value.dtype = ir.DataType.FLOAT16


def make(value: ir.Value, made: partial[ir.TensorProtocol], dtype: ir.DataType) -> None:
    assert value.shape is not None
    value.const_value = ir.LazyTensor(made, dtype, ir.Shape(value.shape.numpy()), name=value.name)
    value.dtype = dtype


def in_blocks(model: ir.Model, product: ir.Node, weight: ir.Value, sizes: Container[int]) -> int:
    """Put blocks in the place of a float matrix [inputs, outputs]. Returns whether they fit."""
    assert weight.const_value is not None
    inputs, outputs = (int(size) for size in weight.const_value.shape.numpy())
    block = block_size(inputs, min(WIDEST[4], inputs // 2))  # as in `storage.store`
    if block not in sizes:
        return 0
    assert block is not None
    source = weight.const_value
    maker = Maker(lambda: quantized_blocks(stored_values(source), block, 4))
    names = [f"{weight.name}.{part}" for part in ("codes", "scales")]
    shapes = [ir.Shape([outputs, inputs]), ir.Shape([outputs, inputs // block])]
    kinds = (ir.DataType.INT4, ir.DataType.FLOAT16)
    made: tuple[Callable[[], ir.TensorProtocol], ...] = (
        lambda: signed(maker.part(0), outputs),
        lambda: rounded(maker.part(1)),
    )
    for name, shape, kind, part in zip(names, shapes, kinds, made, strict=True):
        if name not in model.graph.initializers:
            tensor = ir.LazyTensor(part, kind, shape, name=name)
            model.graph.register_initializer(
                ir.Value(name=name, shape=shape, type=ir.TensorType(kind), const_value=tensor)
            )
    low = ir.TensorType(ir.DataType.FLOAT16)
    values = ir.Value(name=f"{weight.name}.values", shape=shapes[0], type=low)
    factor = ir.Value(name=f"{weight.name}.factor", shape=ir.Shape([inputs, outputs]), type=low)
    given = [model.graph.initializers[name] for name in names]
    attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("block_size", block)]
    model.graph.insert_before(
        product,
        [
            ir.Node("", "DequantizeLinear", given, attributes, outputs=[values], name=str(values.name)),
            ir.Node(
                "", "Transpose", [values], [ir.AttrInt64s("perm", [1, 0])], outputs=[factor], name=str(factor.name)
            ),
        ],
    )
    product.replace_input_with(1, factor)
    if not weight.uses():
        del model.graph.initializers[str(weight.name)]
    return 1


def lay_blocks_down(graph: ir.Graph) -> None:
    """Turn signed blocks [outputs, inputs] that are turned in each step, once, in place: [inputs, outputs].

    So a product reads them directly, with blocks along the first axis, as TensorRT 10.3 describes them.
    """
    turned = set[ir.Value]()
    for node in list(graph):
        made = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if made is None or made.op_type != "DequantizeLinear" or not is_signed(made):
            continue
        codes, scales = made.inputs[:2]
        for value in (codes, scales):
            assert value is not None
            if value not in turned:
                turned.add(value)
                turn(value)
        made.attributes["axis"] = ir.AttrInt64("axis", 0)
        made.outputs[0].shape = node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(made.outputs[0])
        graph.remove(node, safe=True)


def is_signed(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT4


def turn(value: ir.Value) -> None:
    """A stored matrix, and its tensor when it is read."""
    source = value.const_value
    assert source is not None
    assert value.dtype is not None
    assert value.shape is not None
    value.shape = ir.Shape(value.shape.numpy()[::-1])
    make(value, partial(transposed, source), value.dtype)


def transposed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(stored_values(tensor).T), dtype=tensor.dtype)


def signed(codes: ir.TensorProtocol, outputs: int | None = None) -> ir.TensorProtocol:
    """Unsigned codes [outputs, inputs], or where `outputs` is given packed ones, as signed ones."""
    values = stored_values(codes)
    if outputs is not None:
        values = unpacked(values.reshape(outputs, -1), 4)
    return ir.Tensor((values.astype(np.int8) - FLIP).astype(ml_dtypes.int4), dtype=ir.DataType.INT4)


def rounded(scales: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(stored_values(scales).astype(np.float16))
