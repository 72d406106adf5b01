from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arforge.calibration.layer_error import ROWS, LayerError, RowSample, layer_errors
from arforge.calibration.layers import find_layers
from arforge.calibration.quantize import quantize, write_graphs


def model_of(weight: np.ndarray) -> onnx.ModelProto:
    """logits = x @ w"""
    inputs, outputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w.weight"], ["logits"], name="product")],
        "one layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, inputs])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, outputs])],
        [numpy_helper.from_array(weight, "w.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((100, 64)).astype(np.float32)


@pytest.mark.parametrize("limit", [4.5, 2.0, 30.0])
def test_the_error_is_that_of_the_int8_graph(rows: np.ndarray, limit: float, tmp_path: Path) -> None:
    weight = np.random.default_rng(2).standard_normal((64, 48)).astype(np.float32)
    plain = tmp_path / "plain.onnx"
    onnx.save(model_of(weight), plain)
    layers = find_layers(model_of(weight).graph)
    write_graphs(quantize(model_of(weight), layers, {"x": limit}), tmp_path)
    given = ReferenceEvaluator(onnx.load(tmp_path / "step-logits.onnx")).run(["logits"], {"x": rows[None]})[0][0]
    expected = np.linalg.norm(given - rows @ weight) / np.linalg.norm(rows @ weight)
    (found,) = layer_errors(layers, {"x": rows}, {"x": limit}, {}, {}, plain, tmp_path / "step-logits.onnx")
    assert found.error == pytest.approx(expected, rel=1e-3)
    assert found.sqnr == pytest.approx(-20 * np.log10(expected), abs=0.01)
    assert found.clipped == pytest.approx((np.abs(rows) > limit).mean())
    assert (found.layer, found.inputs, found.outputs, found.limit) == ("w", 64, 48, limit)


def test_the_error_is_taken_before_smoothing(rows: np.ndarray, tmp_path: Path) -> None:
    """Inputs divided by `scale`, outputs by `column`: the same function, so no error beyond int8's own."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((64, 48)).astype(np.float32)
    scale, column = (random.uniform(0.1, 9, size).astype(np.float32) for size in weight.shape)
    onnx.save(model_of(weight), tmp_path / "plain.onnx")
    smoothed = model_of(weight * scale[:, None] / column)
    layers = find_layers(smoothed.graph)
    limits = {"x": float(np.abs(rows / scale).max())}
    write_graphs(quantize(smoothed, layers, limits), tmp_path)
    paths = (tmp_path / "plain.onnx", tmp_path / "step-logits.onnx")
    (found,) = layer_errors(layers, {"x": rows}, limits, {"x": scale}, {"w.weight": column}, *paths)
    assert 0 < found.error < 0.1


def test_row_samples_are_bounded_and_even() -> None:
    sample = RowSample(seed=0)
    for step in range(40):
        sample({"x": np.full((2, 50, 3), step, np.float32), "few": np.full((1, 1, 2), step, np.float32)})
    assert sample.rows["x"].shape == (ROWS, 3)
    assert sorted(sample.rows["few"][:, 0]) == list(range(40))
    counts = np.bincount(sample.rows["x"][:, 0].astype(int), minlength=40)
    assert counts.max() < 20  # of 256 / 40
    assert (counts > 0).sum() > 35


def test_an_error_of_none_is_no_infinity() -> None:
    assert LayerError("w", 1, 1, 1.0, 0.0, 0.0).sqnr == 200
