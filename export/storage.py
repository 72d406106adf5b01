"""What a graph's weights are stored as: 16 bits, or blocks of 8 or 4 with scales. It goes on computing in float32.

- A product's matrix of 16 bits is cast where it is read; a table's rows are cast once they are gathered.
- In blocks it stays [outputs, inputs], as checkpoints have it: rows are quantised as they come, and ONNX Runtime's own
  operators read the same bytes. DequantizeLinear and Transpose stand before the product.
- The last product, which makes the logits, is in 8 bits at least: it is small, and tokens are drawn from what it gives.
- Tables are in 16 bits then, the checkpoint's own where it has some; so are products that no block fits.
- Where no precision is asked for, each matrix keeps the checkpoint's.
- Vectors, rotary tables and whatever else there is stay float32.

Image tokenizers keep every tensor as their checkpoint has it, whatever is asked for the decoder: pictures stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import torch

from arforge.export.quantization import BITS, FINEST, LAST, SIZES, block_size
from arforge.export.trace import is_weight, weight_reference
from arforge.runner.errors import CheckpointError

FLOATS = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
CODES = {8: ir.DataType.UINT8, 4: ir.DataType.UINT4}
PRECISIONS = (*FLOATS, *BITS)
USUAL = {"int8": 128, "int4": 64}  # inputs that share a scale
SCALES, ZEROS = ".scales", "zero_points."  # behind a weight's name; before the shape of zero points, which many share


@dataclass(frozen=True)
class Storage:
    floats: ir.DataType | None  # of matrices and tables that are not in blocks; None: as the checkpoint has each
    bits: int | None = None  # of products
    block: int = FINEST  # inputs that share a scale, at most

    @property
    def without_blocks(self) -> Storage:
        return Storage(self.floats)

    def floats_of(self, dtype: torch.dtype) -> ir.DataType:
        """What a matrix is stored as that the checkpoint has in `dtype`."""
        own = FLOATS["bf16" if dtype == torch.bfloat16 else "fp16" if dtype.itemsize <= 2 else "fp32"]
        return own if self.floats is None else self.floats


def storage_of(precision: str | None, source: str, block: int | None = None) -> Storage:
    """How to store weights in `precision` that the checkpoint has in `source`. Raises CheckpointError for none."""
    if precision is not None and precision not in PRECISIONS:
        raise CheckpointError(f"weights are not stored in {precision!r}: use {', '.join(PRECISIONS)}")
    if block is not None and (precision not in BITS or block not in SIZES):
        raise CheckpointError(
            f"blocks of {block} go with {' and '.join(BITS)}, and are of {', '.join(map(str, SIZES))} inputs"
        )
    if precision in BITS:
        return Storage(FLOATS["bf16" if source == "fp32" else source], BITS[precision], block or USUAL[precision])
    return Storage(None if precision is None else FLOATS[precision])


def store(model: ir.Model, storage: Storage, type_of: Callable[[str], torch.dtype]) -> None:
    """Store a traced graph's weights so, in place; they are names still, without values.

    `type_of`: what the checkpoint has a weight in, by its name in the graph.
    """
    matrices = [value for value in model.graph.initializers.values() if is_weight(value) and is_matrix(value)]
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for weight in matrices:
        inputs = weight.shape[1] if weight.shape is not None else None
        assert isinstance(inputs, int)
        # Two blocks at least: of one alone TensorRT makes floats before the product.
        block = block_size(inputs, min(storage.block, inputs // 2)) if storage.bits and is_factor(weight) else None
        if block is not None:
            assert storage.bits is not None
            last = any(use.node is products[-1] for node in readers(weight) for use in node.outputs[0].uses())
            in_blocks(model, weight, max(storage.bits, LAST) if last else storage.bits, block)
        else:
            dtype = storage.floats_of(type_of(str(weight.name)))
            if dtype != ir.DataType.FLOAT:
                in_floats(model, weight, dtype)


def store_unrounded(model: ir.Model, type_of: Callable[[str], torch.dtype]) -> None:
    """Store each of a traced graph's weights as the checkpoint has it, in place; float32 is made before all else."""
    first = model.graph[0]
    for weight in filter(is_weight, list(model.graph.initializers.values())):
        dtype = Storage(None).floats_of(type_of(str(weight.name)))
        if dtype != ir.DataType.FLOAT:
            high = ir.Value(name=f"{weight.name}.float", shape=weight.shape, type=ir.TensorType(ir.DataType.FLOAT))
            weight.replace_all_uses_with(high)
            weight.type = ir.TensorType(dtype)  # a new one: clones of a graph share theirs
            weight.const_value = weight_reference(weight, location="", offset=0)
            to = ir.AttrInt64("to", ir.DataType.FLOAT)
            model.graph.insert_before(first, ir.Node("", "Cast", [weight], [to], outputs=[high], name=high.name))


def readers(weight: ir.Value) -> list[ir.Node]:
    return [use.node for use in weight.uses()]


def is_matrix(weight: ir.Value) -> bool:
    """Whether a weight is only ever a product's matrix, transposed, or a table whose rows are gathered."""
    shape = weight.shape
    if shape is None or len(shape) != 2 or not weight.uses():
        return False
    gathered = (node.op_type == "Gather" and node.inputs[0] is weight for node in readers(weight))
    return all(one or is_product(node) for one, node in zip(gathered, readers(weight), strict=True))


def is_factor(weight: ir.Value) -> bool:
    return all(is_product(node) for node in readers(weight))


def is_product(node: ir.Node) -> bool:
    """Whether a node turns a matrix for products alone."""
    uses = node.outputs[0].uses()
    return node.op_type == "Transpose" and all(use.node.op_type == "MatMul" and use.idx == 1 for use in uses)


def in_floats(model: ir.Model, weight: ir.Value, dtype: ir.DataType) -> None:
    weight.dtype = dtype
    weight.const_value = weight_reference(weight, location="", offset=0)
    for node in readers(weight):
        low = node.outputs[0]
        high = ir.Value(name=low.name, shape=low.shape, type=ir.TensorType(ir.DataType.FLOAT))
        low.name, low.dtype = f"{low.name}.stored", dtype
        low.replace_all_uses_with(high, replace_graph_outputs=True)  # a prompt's table of words is a graph by itself
        to = ir.AttrInt64("to", ir.DataType.FLOAT)
        model.graph.insert_after(node, ir.Node("", "Cast", [low], [to], outputs=[high], name=f"{node.name}.float"))


def in_blocks(model: ir.Model, weight: ir.Value, bits: int, block: int) -> None:
    assert weight.shape is not None
    outputs, inputs = (int(size) for size in weight.shape.numpy())
    count = inputs // block
    places = list(readers(weight))
    weight.dtype = CODES[bits]
    weight.const_value = weight_reference(weight, location="", offset=0)
    scales = named(model, f"{weight.name}{SCALES}", ir.DataType.FLOAT, outputs, count)
    zeros = named(model, f"{ZEROS}{bits}.{outputs}x{count}", CODES[bits], outputs, count)
    values = ir.Value(name=f"{weight.name}.values", shape=weight.shape, type=ir.TensorType(ir.DataType.FLOAT))
    attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("block_size", block)]
    for node in places:
        node.replace_input_with(0, values)
    node = ir.Node("", "DequantizeLinear", [weight, scales, zeros], attributes, outputs=[values], name=str(values.name))
    model.graph.insert_before(places[0], node)


def named(model: ir.Model, name: str, dtype: ir.DataType, rows: int, columns: int) -> ir.Value:
    """A matrix by its name; the one of that name, where there is one."""
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=ir.Shape([rows, columns]), type=ir.TensorType(dtype))
        value.const_value = weight_reference(value, location="", offset=0)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
