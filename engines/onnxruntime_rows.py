"""Products with whole matrices of 8 bits and a scale for each row of activations, for ONNX Runtime.

A row is a token's: it is quantised by its own largest value, so no calibration is needed, and no token changes another;
sums are of whole numbers, exact in any order. Where a row's scale only multiplies what a later product quantises anew,
as behind w3, it is carried past that product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from arforge.engines.attention import Builder
from arforge.engines.onnxruntime_blocks import CONTRIB, Maker, parts, register, stored_matrix
from arforge.export.stored_values import stored_values

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8
STEPS, ZERO = 127, 128  # codes from the zero point to the largest value, and the zero point of activations


def quantize_rows(model: ir.Model) -> int:
    """Replace each product with a stored float matrix by one of whole numbers, in place. Returns how many."""
    done = Quantized(model)
    for node in [node for node in model.graph if node.op_type == "MatMul"]:
        if (weight := stored_matrix(node.inputs[1])) is not None:
            done.replace(node, weight)
    return done.products


@dataclass
class Quantized:
    """What has been quantised of a graph, in its order."""

    model: ir.Model
    products: int = 0
    rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)  # codes and scales of activations
    scaled: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)  # results: before, and the scales
    constants: dict[str, ir.Value] = field(default_factory=dict)

    def replace(self, node: ir.Node, weight: ir.Value) -> None:
        source, old = node.inputs[0], node.outputs[0]
        assert source is not None
        build = Builder(self.model.graph, node)
        if source not in self.rows:
            self.rows[source] = self.quantize(build, source)
        codes, scales = self.rows[source]
        step, zero = self.constant("step", np.float32(1 / STEPS)), self.constant("zero", np.uint8(ZERO))
        product = ir.Value(name=f"{old.name}.product", type=ir.TensorType(FLOAT))
        matrix, columns = stored_codes(self.model, weight)
        given = [codes, matrix, step, columns, zero]
        new = ir.Node(CONTRIB, "MatMulIntegerToFloat", given, outputs=[product], name=node.name)
        self.model.graph.insert_before(node, new)
        result = build("Mul", [product, scales], FLOAT)
        result.shape = old.shape
        old.replace_all_uses_with(result)
        self.model.graph.remove(node, safe=True)
        self.scaled[result] = product, scales
        self.products += 1

    def quantize(self, build: Builder, source: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Codes uint8 of activations, and their scales [..., 1]: the row's largest, times what was carried along."""
        carried = self.unscaled(source)
        axes, step = self.constant("axes", np.array([-1])), self.constant("step", np.float32(1 / STEPS))
        largest = build("ReduceMax", [build("Abs", [source], FLOAT), axes], FLOAT, keepdims=1)
        one = build("Div", [source, largest], FLOAT)
        codes = build("QuantizeLinear", [one, step, self.constant("zero", np.uint8(ZERO))], UINT8)
        for scales in carried:
            largest = build("Mul", [largest, scales], FLOAT)
        return codes, largest

    def unscaled(self, source: ir.Value) -> list[ir.Value]:
        """Take the scales out of the factors of activations that nothing else reads; which they were."""
        node = source.producer()
        if node is None or node.op_type != "Mul" or source in self.scaled:
            return []
        carried = []
        for index, factor in enumerate(node.inputs):
            if factor in self.scaled and len(factor.uses()) == 1:
                product, scales = self.scaled[factor]
                node.replace_input_with(index, product)
                carried.append(scales)
        return carried

    def constant(self, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
        if name not in self.constants:
            full = f"rows.{name}"
            self.constants[name] = ir.Value(name=full, const_value=ir.Tensor(np.asarray(array), name=full))
            self.model.graph.register_initializer(self.constants[name])
        return self.constants[name]


def stored_codes(model: ir.Model, weight: ir.Value) -> list[ir.Value]:
    """Codes int8 [inputs, outputs] of a matrix and scales float32 [outputs], made when they are written."""
    source = weight.const_value
    assert source is not None
    inputs, outputs = (int(size) for size in source.shape.numpy())
    maker = Maker(lambda: quantized_columns(stored_values(source)))
    kinds = {
        f"{weight.name}.codes": (ir.DataType.INT8, (inputs, outputs)),
        f"{weight.name}.scales": (FLOAT, (outputs,)),
    }
    for part, (name, (dtype, shape)) in enumerate(kinds.items()):
        if name not in model.graph.initializers:
            register(model, name, ir.LazyTensor(partial(maker.part, part), dtype, ir.Shape(shape), name=name))
    return [model.graph.initializers[name] for name in kinds]


def quantized_columns(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [inputs, outputs] and scales [outputs] of a weight [inputs, outputs]: a column's largest is code 127."""
    codes, scales = np.empty(weight.shape, np.int8), np.empty(weight.shape[1], np.float32)
    for first, columns in parts(weight, len(weight)):
        largest = np.abs(columns).max(axis=1)
        largest[largest == 0] = STEPS
        scale = largest / np.float32(STEPS)
        end = first + len(columns)
        codes[:, first:end] = np.rint(columns / scale[:, None]).T
        scales[first:end] = scale
    return codes, scales
