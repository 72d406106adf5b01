"""The structure of an int8 graph, family by family."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from arforge.calibration.layers import Layer, activations, find_layers
from arforge.calibration.quantize import quantize, write_graphs

BUNDLES = ("bundle", "grouped_bundle", "par_bundle", "arpg_bundle")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(params=BUNDLES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Layer], Path]:
    """The float32 graph, its layers, and the folder with the int8 graphs of limits 1, 2, …"""
    source = request.getfixturevalue(request.param) / "graphs/fp32/step-logits.onnx"
    model = onnx.load(source)
    layers = find_layers(model.graph)
    write_graphs(quantize(model, layers, limits(layers)), tmp_path)
    return source, layers, tmp_path


def limits(layers: list[Layer]) -> dict[str, float]:
    return {name: 1.0 + index for index, name in enumerate(activations(layers))}


def test_every_layer_is_quantised_and_nothing_else(case: tuple[Path, list[Layer], Path]) -> None:
    source, layers, folder = case
    plain = onnx.load(source).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in plain.initializer}
    for name in ("step", "step-logits"):
        onnx.checker.check_model(folder / f"{name}.onnx")
        graph = onnx.load(folder / f"{name}.onnx").graph
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        producers = {output: node for node in graph.node for output in node.output}
        nodes = {node.name: node for node in graph.node}
        for layer in layers:
            given, weight = (producers[value] for value in nodes[layer.node].input)
            assert (given.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
            entry = producers[given.input[0]]
            assert entry.op_type == "QuantizeLinear"
            assert entry.input[0] == layer.activation
            assert list(entry.input[1:]) == list(given.input[1:])
            scale, zero = (stored[value] for value in given.input[1:])
            assert scale.shape == zero.shape == ()
            assert scale == pytest.approx(limits(layers)[layer.activation] / 127, rel=1e-6)
            assert (zero.dtype, zero) == (np.int8, 0)
            values, scales, zeros = (stored[value] for value in weight.input)
            assert values.dtype == zeros.dtype == np.int8
            assert scales.shape == zeros.shape == (layer.outputs,)
            assert not zeros.any()
            assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [1]
            original = weights[layer.weight]
            largest = np.abs(original).max(0)  # zero in the outputs that a padded head adds
            np.testing.assert_allclose(scales, np.where(largest > 0, largest / 127, 1), rtol=1e-6)
            assert (np.abs(values * scales - original) <= scales * 0.501).all()
            assert layer.weight not in stored
        counts = Counter(node.op_type for node in graph.node)
        assert [counts.pop(kind) for kind in QUANTIZERS] == [len(layers), 2 * len(layers)]
        assert counts == Counter(node.op_type for node in plain.node)
        kept = {node.name: node for node in plain.node if node.op_type != "MatMul"}
        for key, node in kept.items():
            assert list(nodes[key].input) == list(node.input)
            assert list(nodes[key].output) == list(node.output)
        outputs = [value.name for value in plain.output if name == "step-logits" or value.name != "logits"]
        assert [value.name for value in graph.output] == outputs
        assert graph.input == plain.input


def test_weights_are_stored_once_as_int8(case: tuple[Path, list[Layer], Path]) -> None:
    source, layers, folder = case
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["model.weights", "step-logits.onnx", "step.onnx"]
    places = []
    for name in ("step", "step-logits"):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        large = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        assert {f"{layer.weight}_quantized" for layer in layers} <= {tensor.name for tensor in large}
        places.append({tensor.name: [(e.key, e.value) for e in tensor.external_data] for tensor in large})
    assert places[0] == places[1]
    assert {dict(place)["location"] for place in places[0].values()} == {"weights/model.weights"}
    model = onnx.load(folder / "step.onnx", load_external_data=False)
    assert len(model.metadata_props) == 0
    assert str(source.parent) not in str(model)


def test_onnx_runtime_makes_every_layer_an_integer_product(case: tuple[Path, list[Layer], Path]) -> None:
    from arforge.runner.backends.onnxruntime_session import UNWANTED

    _, layers, folder = case
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        folder / "step.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED
    )
    counts = Counter(node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)
    assert counts["MatMulIntegerToFloat"] == len(layers)
    assert counts["MatMul"] == counts["DequantizeLinear"] == 0


def test_layers_that_are_left_out_keep_their_weights(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "graphs/fp32/step-logits.onnx")
    layers = find_layers(model.graph)
    left = [layer for layer in layers if layer.name in ("output", "layers.0.feed_forward.w1")]
    write_graphs(quantize(model, [layer for layer in layers if layer not in left], limits(layers)), tmp_path)
    graph = onnx.load(tmp_path / "step.onnx", load_external_data=False).graph
    nodes = {node.name: node for node in graph.node}
    for layer in left:
        assert list(nodes[layer.node].input) == [layer.activation, layer.weight]
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == len(layers) - 2
