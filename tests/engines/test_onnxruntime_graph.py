from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as runtime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arforge.calibration.agreement import Comparison
from arforge.calibration.requests import generate, spread
from arforge.calibration.taps import PairedEngine
from arforge.engines import onnxruntime
from arforge.engines.onnxruntime_blocks import CONTRIB, Choice, by_rule, quantize_products, quantized_blocks
from arforge.engines.onnxruntime_graph import fuse_norms, lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.engines.verify import verify_bundle
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine


def restored(blocks: NDArray[np.uint8], scales: NDArray[np.float32], inputs: int) -> NDArray[np.float32]:
    values = (blocks.astype(np.float32) - 128) * scales[..., None]
    return values.reshape(len(blocks), -1)[:, :inputs].T


@pytest.mark.parametrize(("inputs", "block"), [(64, 16), (64, 64), (40, 32)])
def test_blocks_keep_each_weight_within_half_a_step_of_its_block(inputs: int, block: int) -> None:
    weight = np.random.default_rng(0).standard_normal((inputs, 24)).astype(np.float32)
    weight[3] *= 50  # one input with large weights costs its own block alone
    blocks, scales = quantized_blocks(weight, block)
    count = -(-inputs // block)
    assert blocks.shape == (24, count, block)
    assert scales.shape == (24, count)
    error = np.abs(restored(blocks, scales, inputs) - weight)
    steps = np.repeat(scales, block, axis=1)[:, :inputs].T
    assert (error <= 0.5001 * steps).all()
    for column in range(24):  # the largest of a block is exact
        for index in range(count):
            part = slice(index * block, min(inputs, (index + 1) * block))
            largest = np.abs(weight[part, column]).argmax() + part.start
            assert error[largest, column] < 1e-5 * abs(weight[largest, column])


def test_zero_weights_stay_zero() -> None:
    blocks, scales = quantized_blocks(np.zeros((32, 2), np.float32), 32)
    assert (blocks == 128).all()
    assert (scales == 1).all()


def product(weight: NDArray[np.float32], tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"], name="product"), helper.make_node("Identity", ["xw"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    return path


@pytest.mark.parametrize("inputs", [256, 96, 40])
def test_the_runtime_computes_the_quantised_product_row_by_row(inputs: int, tmp_path: Path) -> None:
    """A row alone gives the same as among others but for the order of sums: its activations have their own scales."""
    random = np.random.default_rng(inputs)
    weight = random.standard_normal((inputs, 48)).astype(np.float32)
    path = product(weight, tmp_path)
    model = ir.load(path)
    model.opset_imports[CONTRIB] = 1
    assert quantize_products(model, "int8") == 1
    lowered = write_model(model, tmp_path / "lowered", "product")[0]
    session = runtime.InferenceSession(lowered, providers=["CPUExecutionProvider"])
    x = random.standard_normal((5, inputs)).astype(np.float32) * np.array([[0.01], [1], [1], [30], [1]], np.float32)
    (together,) = session.run(None, {"x": x})
    block = {256: 256, 96: 32, 40: 16}[inputs]
    expected = x @ restored(*quantized_blocks(weight, block), inputs)
    error = np.abs(together - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert (error < 0.02).all()
    assert error.max() > 0  # activations are rounded too
    for row in range(5):
        alone = session.run(None, {"x": x[row : row + 1]})[0][0]
        np.testing.assert_allclose(alone, together[row], atol=1e-5 * np.abs(alone).max())


def test_a_choice_gives_a_matrix_other_bits_and_blocks(bundle: Path) -> None:
    source = open_bundle(bundle).graph("step", "fp32")

    def kinds(choice: Choice) -> set[tuple[bool, int, int]]:
        """Whether it is the head, bits and inputs a scale."""
        model = lower_for_onnxruntime(source, "int4", 5, choice=choice)
        nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
        return {
            (node is nodes[-1], node.attributes["bits"].as_int(), node.attributes["block_size"].as_int())
            for node in nodes
        }

    assert kinds(by_rule) == {(False, 4, 64), (True, 8, 64)}
    assert kinds(lambda _, bits: (bits, 16)) == {(False, 4, 16), (True, 8, 16)}
    assert (True, 4, 32) in kinds(lambda name, bits: (4, 32) if name == "output.weight" else (bits, 64))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("name", ["bundle", "grouped_bundle", "arpg_bundle"])
def test_every_product_and_norm_of_every_family_is_lowered(name: str, request: pytest.FixtureRequest) -> None:
    source = open_bundle(request.getfixturevalue(name)).graph("step", "fp32")
    before, model = operators(source), lower_for_onnxruntime(source, "int8", 5)
    after = Counter(node.op_type for node in model.graph)
    assert after["MatMul"] == 0
    assert after["MatMulNBits"] == before["MatMul"]
    assert after["SkipSimplifiedLayerNormalization"] + after["RMSNormalization"] == before["RMSNormalization"]
    assert after["RMSNormalization"] < before["RMSNormalization"]
    assert after["Attention"] == before["Attention"]
    assert after["TensorScatter"] == before["TensorScatter"]
    matrices = [node.inputs[1].shape for node in model.graph if node.op_type == "MatMulNBits"]
    assert all(len(shape) == 3 and shape[2] in (16, 32, 64) for shape in matrices)


def test_fused_norms_give_the_same_tokens(bundle: Path, runner: Runner, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    model = ir.load(opened.graph("step", "fp32"))
    model.opset_imports[CONTRIB] = 1
    assert fuse_norms(model) > 0
    path = tmp_path / "step.onnx"
    ir.save(model, path, external_data="step.weights")
    with Runner(opened, OnnxRuntimeEngine(opened, "fp32", threads=1, path=path)) as fused:
        found = fused.generate([1, 2], schedule="zipar:2", greedy=True).tokens
    np.testing.assert_array_equal(found, runner.generate([1, 2], schedule="zipar:2", greedy=True).tokens)


@pytest.mark.parametrize(("name", "schedule", "limit"), [("bundle", "zipar:2", 0.06), ("arpg_bundle", "arpg:6", 0.15)])
def test_logits_stay_close_to_float32(
    name: str, schedule: str, limit: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    path = write_model(lower_for_onnxruntime(opened.graph("step-logits", "fp32"), "int8", 5), tmp_path, "step")[0]
    comparison = Comparison(opened, schedule)
    follower = OnnxRuntimeEngine(opened, "int8", 1, graph="step-logits", path=path)
    requests = spread(opened, (schedule,), 12, 3, 2.0, 12)
    dict(generate(opened, PairedEngine(opened, follower, comparison, 1), requests, "", lambda *_: None))
    found = comparison.result()
    assert found.tokens == 12 * opened.model.cells
    assert found.top1 > 0.85
    assert 0 < found.logit_error < limit


def test_an_int8_engine_needs_no_calibration_and_brings_its_own_graph(bundle_copy: Path) -> None:
    built = onnxruntime.build(bundle_copy, "int8", quantization="blocks")
    opened = open_bundle(bundle_copy)
    identity = opened.engine("onnxruntime", "int8")
    assert identity == built.identity
    assert identity["quantization"] == "blocks"
    assert identity["source"] == "graphs/fp32/step.onnx"
    assert identity["graph"].startswith("engines/onnxruntime-int8-cpu/step-")
    assert {identity["graph"], identity["weights"]} <= opened.files.keys()
    before = sorted(path for path in opened.files if "int8" in path)
    onnxruntime.build(bundle_copy, "int8", quantization="blocks")
    assert sorted(path for path in open_bundle(bundle_copy).files if "int8" in path) == before
    lines: list[str] = []
    verify_bundle(bundle_copy, lines.append)
    assert "engine onnxruntime int8: same tokens alone and in a batch" in lines
    with Runner.open(bundle_copy, precision="int8", threads=1) as runner:
        assert operators(runner.bundle.path(identity["graph"]))["MatMulNBits"] == 11


def test_an_engine_of_another_source_is_refused(bundle_copy: Path) -> None:
    onnxruntime.build(bundle_copy, "int8")
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"]["graphs/fp32/step.onnx"]["sha256"] = 64 * "0"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match="built from another graph: rebuild it"):
        Runner.open(bundle_copy, precision="int8")


@pytest.mark.parametrize(
    ("precision", "quantization", "message"),
    [
        ("fp32", "blocks", "quantization 'blocks' with precision fp32: int8 has blocks, rows, static"),
        ("int8", "dynamic", "quantization 'dynamic' with precision int8"),
        ("int8", "static", "has no calibrated graph: make it with `arforge calibrate`"),
    ],
)
def test_quantisations_that_are_not_there_are_refused(
    bundle_copy: Path, precision: str, quantization: str, message: str
) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(EngineError, match=message):
        onnxruntime.build(bundle_copy, precision, quantization=quantization)
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_a_graph_of_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = shutil.copy(open_bundle(bundle).graph("step", "fp32"), tmp_path / "step.onnx")
    model = onnx.load(path, load_external_data=False)
    del model.graph.node[:], model.graph.output[:]
    onnx.save(model, path)
    with pytest.raises(EngineError, match="has no Attention node: it is not a step graph"):
        lower_for_onnxruntime(Path(path), "fp32", 5)
