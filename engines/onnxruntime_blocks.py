"""Products with weights in blocks of 8 or 4 bits, as ONNX Runtime's own operator takes them.

The operator quantises activations itself, block by block in every row, so no calibration is needed and no row of a
batch changes another. Blocks that the bundle stores are read where they lie; others are made of its float weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.export.quantization import BITS, FINEST, LAST, block_size, packed, quantized
from arforge.export.stored_values import stored_values
from arforge.runner.errors import EngineError

CONTRIB = "com.microsoft"
WIDEST = {8: 256, 4: 64}  # inputs that share a scale, at most
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy level of that name
COLUMNS = 1 << 25  # bytes of float32 that are quantised at once

Choice = Callable[[str, int], tuple[int, int]]
"""The bits and the widest block of a matrix, by its name and the bits that the precision gives it."""


def by_rule(name: str, bits: int) -> tuple[int, int]:  # noqa: ARG001
    return bits, WIDEST[bits]


def quantize_products(model: ir.Model, precision: str, choice: Choice = by_rule) -> int:
    """Replace each product with a stored matrix by one with blocks of it, in place. Returns how many.

    Blocks that are stored stay as they are; the others have the bits of the precision, those of the logits at least 8,
    unless `choice` gives them others.
    """
    products = [node for node in model.graph if node.op_type == "MatMul"]
    quantized = 0
    for node in products:
        bits = max(BITS[precision], LAST) if node is products[-1] else BITS[precision]
        found = shared_blocks(model, node.inputs[1]) or made_blocks(model, node.inputs[1], bits, choice)
        if found is None:
            continue
        facts, stored = found
        attributes = [ir.AttrInt64(name, value) for name, value in facts.items()]
        attributes.append(ir.AttrInt64("accuracy_level", INT8_ACTIVATIONS))
        result = ir.Value(name=f"{node.outputs[0].name}.{precision}", type=ir.TensorType(ir.DataType.FLOAT))
        new = ir.Node(CONTRIB, "MatMulNBits", [node.inputs[0], *stored], attributes, outputs=[result], name=node.name)
        model.graph.insert_before(node, new)
        node.outputs[0].replace_all_uses_with(result)
        model.graph.remove(node, safe=True)
        quantized += 1
    return quantized


Blocks = tuple[dict[str, int], list[ir.Value]]
"""Attributes of a product, and its blocks and scales."""


def dequantizer(factor: ir.Value) -> ir.Node | None:
    """What makes a product's factor of stored blocks; None where it is none."""
    turned = factor.producer()
    source = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
    node = source.producer() if source is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def shared_blocks(model: ir.Model, factor: ir.Value | None) -> Blocks | None:
    """Those of a factor that the graph dequantises, as the same bytes of the same file; None for another factor."""
    node = None if factor is None else dequantizer(factor)
    if node is None:
        return None
    codes, scales = node.inputs[:2]
    assert codes is not None
    assert scales is not None
    tensor = codes.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in (ir.DataType.UINT8, ir.DataType.UINT4):
        raise EngineError(f"{codes.name} is not stored in blocks of 8 or 4 bits: export the bundle again")
    outputs, inputs = (int(size) for size in tensor.shape.numpy())
    bits, block = 8 if tensor.dtype == ir.DataType.UINT8 else 4, node.attributes["block_size"].as_int()
    name, shape = f"{codes.name}.blocks", ir.Shape([outputs, inputs // block, block * bits // 8])
    if name not in model.graph.initializers:
        same = ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, ir.DataType.UINT8, shape=shape, name=name,
            base_dir=tensor.base_dir,
        )  # fmt: skip
        register(model, name, same)
    facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    return facts, [model.graph.initializers[name], scales]


def made_blocks(model: ir.Model, factor: ir.Value | None, bits: int, choice: Choice = by_rule) -> Blocks | None:
    """Those of a float matrix, made when they are written; None for a factor that is no stored matrix."""
    weight = stored_matrix(factor)
    if weight is None:
        return None
    source = weight.const_value
    assert source is not None
    inputs, outputs = (int(size) for size in source.shape.numpy())
    bits, widest = choice(str(weight.name), bits)
    block = block_size(inputs, widest) or FINEST
    count = -(-inputs // block)
    maker = Maker(lambda: quantized_blocks(stored_values(source), block, bits))
    kinds = {
        f"{weight.name}.blocks": (0, ir.DataType.UINT8, (outputs, count, block * bits // 8)),
        f"{weight.name}.scales": (1, ir.DataType.FLOAT, (outputs, count)),
    }
    for name, (part, dtype, shape) in kinds.items():
        if name not in model.graph.initializers:
            register(model, name, ir.LazyTensor(partial(maker.part, part), dtype, ir.Shape(shape), name=name))
    facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    return facts, [model.graph.initializers[name] for name in kinds]


def stored_matrix(factor: ir.Value | None) -> ir.Value | None:
    """The float matrix that a factor is, or is cast from; None for a factor that is no stored matrix."""
    weight = factor
    if factor is not None and (cast := factor.producer()) is not None and cast.op_type == "Cast":
        weight = cast.inputs[0]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return weight


def register(model: ir.Model, name: str, tensor: ir.ExternalTensor | ir.LazyTensor) -> None:
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    model.graph.register_initializer(ir.Value(name=name, shape=shape, type=kind, const_value=tensor))


class Maker:
    """Quantises a matrix once for its two parts, which are asked for one after another."""

    def __init__(self, make: Callable[[], tuple[NDArray[Any], NDArray[np.float32]]]) -> None:
        self.make = make
        self.made: list[NDArray[Any] | None] = [None, None]

    def part(self, index: int) -> ir.TensorProtocol:
        if self.made[index] is None:
            self.made = list(self.make())
        found, self.made[index] = self.made[index], None
        assert found is not None
        return ir.Tensor(found)


def quantized_blocks(
    weight: NDArray[np.floating], block: int, bits: int = 8
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks uint8 [outputs, blocks, bytes] and scales float32 [outputs, blocks] of a weight [inputs, outputs].

    A last block that is not full is filled with zeros.
    """
    inputs, outputs = weight.shape
    count = -(-inputs // block)
    blocks = np.empty((outputs, count, block * bits // 8), np.uint8)
    scales = np.empty((outputs, count), np.float32)
    for first, columns in parts(weight, count * block):
        codes, scale = quantized(columns, bits, block)
        end = first + len(columns)
        blocks[first:end] = packed(codes, bits).reshape(end - first, count, -1)
        scales[first:end] = scale
    return blocks, scales


def parts(weight: NDArray[np.floating], rows: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Columns of a matrix as rows in float32, filled up to that many numbers; a few at a time, with the first's."""
    step = max(1, COLUMNS // 4 // rows)
    for first in range(0, weight.shape[1], step):
        columns = weight[:, first : first + step]
        padded = np.zeros((columns.shape[1], rows), np.float32)
        padded[:, : len(weight)] = columns.T
        yield first, padded
