"""Each operator that is rewritten for opset 20 gives what ONNX Runtime's own gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arforge.engines.opset_20 import NEWER, OPSET, to_opset_20
from arforge.runner import EngineError

Arrays = dict[str, NDArray[Any]]
RANDOM = np.random.default_rng(0)


def normal(*shape: int, dtype: type = np.float32) -> NDArray[Any]:
    return RANDOM.standard_normal(shape).astype(dtype)


def model_of(node: onnx.NodeProto, given: Arrays, weights: Arrays, free: bool = True) -> onnx.ModelProto:
    """A graph of that node alone, whose result is like its first input; the first dimension is free."""
    inputs = []
    for name, array in given.items():
        shape = ["rows", *array.shape[1:]] if free else array.shape
        inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    first = inputs[0].type.tensor_type
    output = helper.make_tensor_value_info("y", first.elem_type, [d.dim_param or d.dim_value for d in first.shape.dim])
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "one", inputs, [output], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    made.ir_version = 10
    return onnx.shape_inference.infer_shapes(made)


def run(model: onnx.ModelProto, given: Arrays) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def both(node: onnx.NodeProto, given: Arrays, weights: Arrays) -> tuple[NDArray[Any], NDArray[Any], set[str]]:
    """The result as it is and as rewritten, and the operators of the second."""
    source = model_of(node, given, weights)
    model = ir.from_proto(source)
    to_opset_20(model)
    rewritten = ir.to_proto(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert [(one.domain, one.version) for one in rewritten.opset_import] == [("", OPSET)]
    kinds = {node.op_type for node in rewritten.graph.node}
    assert node.op_type not in kinds
    return run(source, given), run(rewritten, given), kinds


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 4e-3)])
def test_root_mean_square_normalisation(dtype: type, tolerance: float) -> None:
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1e-3)
    given = {"x": 30 * normal(2, 3, 48, dtype=dtype)}  # whose squares float16 does not hold
    expected, found, _ = both(node, given, {"scale": normal(48, dtype=dtype)})
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 4)])
def test_group_normalisation_has_a_scale_for_each_channel(shape: tuple[int, ...]) -> None:
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=3, epsilon=1e-4)
    expected, found, _ = both(node, {"x": normal(*shape)}, {"scale": normal(6), "bias": normal(6)})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    node = helper.make_node("RotaryEmbedding", ["x", "cos", "sin", "positions"], ["y"], interleaved=interleaved)
    given = {"x": normal(2, 4, 3, 16), "positions": RANDOM.integers(0, 40, (2, 3))}
    angles = normal(40, 8)
    expected, found, _ = both(node, given, {"cos": np.cos(angles), "sin": np.sin(angles)})
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 32, 50, 1000, 16384])
def test_running_sums_are_products_in_blocks(count: int) -> None:
    """No loop, which is what TensorRT before 10.8 makes of CumSum; and each block a few numbers."""
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    given = {"x": RANDOM.random((2, 3, count), np.float32) / count}
    expected, found, kinds = both(node, given, {"axis": np.array(-1)})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.diff(found) >= -1e-6).all()
    assert "MatMul" in kinds
    assert not kinds & {"Loop", "Scan"}


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("CumSum", {"exclusive": 1}, "CumSum of a free size, backwards or exclusive"),
        ("RMSNormalization", {"axis": 1}, "RMSNormalization over other axes than the last"),
        ("RotaryEmbedding", {"rotary_embedding_dim": 4}, "RotaryEmbedding of a part of a head"),
    ],
)
def test_what_has_no_form_is_refused(kind: str, attributes: dict[str, int], message: str) -> None:
    others = {
        "CumSum": {"b": np.array(-1)},
        "RMSNormalization": {"b": normal(16)},
        "RotaryEmbedding": {"b": normal(9, 8), "c": normal(9, 8), "d": np.zeros((1, 2), np.int64)},
    }[kind]
    node = helper.make_node(kind, ["x", *others], ["y"], **attributes)
    given = {"x": normal(1, 2, 2, 16) if kind == "RotaryEmbedding" else normal(1, 2, 16)}
    with pytest.raises(EngineError, match=message):
        to_opset_20(ir.from_proto(model_of(node, given, others, free=False)))


def test_operators_that_are_left_and_newer_are_named() -> None:
    node = helper.make_node("Swish", ["x"], ["y"])
    with pytest.raises(EngineError, match="the graph has Swish, which opset 20 lacks"):
        to_opset_20(ir.from_proto(model_of(node, {"x": normal(1, 2)}, {})))
    assert all(onnx.defs.get_schema(kind).since_version > OPSET for kind in NEWER)


def test_quantised_products_become_float32_with_scales_as_they_are() -> None:
    """Before opset 23 a quantizer has one type for scales and values; no scale is rounded to float16."""
    scales = np.float32([3e-8, 0.01, 0.02])  # the first is none in float16
    weight = RANDOM.integers(-127, 128, (8, 3)).astype(np.int8)
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["a"], output_dtype=half),
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["b"], axis=1, output_dtype=half),
        helper.make_node("MatMul", ["a", "b"], ["product"]),
        helper.make_node("Add", ["product", "product"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", half, ["rows", 8])]
    outputs = [helper.make_tensor_value_info("y", half, ["rows", 3])]
    stored = {"step": np.float32(0.02), "zero": np.int8(0), "weight": weight, "scales": scales}
    weights = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "q", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 24)]
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(made))
    to_opset_20(model)
    rewritten = ir.to_proto(model)
    rewritten.ir_version = 9
    onnx.checker.check_model(rewritten, full_check=True)
    values = normal(4, 8, dtype=np.float16)
    codes = np.clip(np.round(values.astype(np.float32) / np.float32(0.02)), -128, 127)
    expected = 2 * ((codes * np.float32(0.02)) @ (weight * scales)).astype(np.float16)
    np.testing.assert_allclose(run(rewritten, {"x": values}), expected, rtol=2e-3, atol=1.2e-7)
    assert (expected[:, 0] != 0).any()


@pytest.mark.parametrize("typed", [False, True])
def test_blocks_of_four_bits_stay_and_ask_for_opset_21(typed: bool) -> None:
    """Without the attribute of opset 23, which repeats the type of the scales."""
    model = ir.from_proto(in_blocks({"output_dtype": TensorProto.FLOAT16} if typed else {}))
    to_opset_20(model)
    rewritten = ir.to_proto(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert [one.version for one in rewritten.opset_import] == [21]
    (node,) = rewritten.graph.node
    assert {attribute.name for attribute in node.attribute} == {"axis", "block_size"}


def test_blocks_of_four_bits_with_other_values_are_refused() -> None:
    model = ir.from_proto(in_blocks({"output_dtype": TensorProto.FLOAT}))
    with pytest.raises(EngineError, match="has scales of FLOAT16 and other values"):
        to_opset_20(model)


def in_blocks(more: dict[str, int]) -> onnx.ModelProto:
    codes = helper.make_tensor("codes", TensorProto.INT4, [64, 2], np.zeros(128, np.int8))
    scales = onnx.numpy_helper.from_array(np.ones((2, 2), np.float16), "scales")
    node = helper.make_node(
        "DequantizeLinear", ["codes", "scales"], ["y"], name="blocks", axis=0, block_size=32, **more
    )
    output = helper.make_tensor_value_info("y", more.get("output_dtype", TensorProto.FLOAT16), [64, 2])
    graph = helper.make_graph([node], "one", [], [output], [codes, scales])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    made.ir_version = 10
    return made
