"""Whole matrices with a scale a row of activations: what is rounded, that no row sees another, and when it is built."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as runtime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from tiny import CONFIG, random_weights

from arforge.calibration.agreement import Comparison
from arforge.calibration.requests import generate, spread
from arforge.calibration.taps import PairedEngine
from arforge.cli import main
from arforge.engines import onnxruntime, product_trial
from arforge.engines.graph_data import check_graphs
from arforge.engines.onnxruntime_blocks import CONTRIB
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.onnxruntime_rows import quantize_rows, quantized_columns
from arforge.engines.product_trial import Tried, quicker, try_products
from arforge.engines.tensorrt_graph import write_model
from arforge.engines.verify import verify_bundle
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle
from arforge.runner.errors import VerificationError
from arforge.runner.step_graph import cache_names

FAMILIES = ["bundle", "grouped_bundle", "par_bundle", "arpg_bundle", "text_bundle"]


def test_a_column_keeps_each_weight_within_half_a_step_and_its_largest_exactly() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    weight[:, 3] *= 50
    weight[:, 4] = 0
    codes, scales = quantized_columns(weight)
    assert codes.min() == -127 or codes.max() == 127
    np.testing.assert_array_equal(np.abs(codes).max(axis=0), np.where(np.arange(24) == 4, 0, 127))
    assert (np.abs(codes * scales - weight) <= 0.5001 * scales).all()
    assert (scales > 0).all()


def product(weight: NDArray[np.float32], tmp_path: Path) -> runtime.InferenceSession:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"], name="product"), helper.make_node("Identity", ["xw"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    model = ir.load(path)
    model.opset_imports[CONTRIB] = 1
    assert quantize_rows(model) == 1
    return open_session(write_model(model, tmp_path / "lowered", "product")[0], threads=1)


def test_a_row_is_rounded_by_its_own_largest_value_and_has_the_bits_that_it_has_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((96, 48)).astype(np.float32)
    session = product(weight, tmp_path)
    sizes = np.array([[1], [1e-4], [1e4], [0], [1e-41], [30], [1]], np.float32)
    x = (random.standard_normal((len(sizes), 96)) * sizes).astype(np.float32)
    (together,) = session.run(None, {"x": x})
    codes, scales = quantized_columns(weight)
    expected = x @ (codes * scales)
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(together - expected) <= 96 * 0.5 / 127 * largest * np.abs(weight).max()).all()
    usual = [0, 1, 2, 5, 6]
    error = np.abs(together - expected).max(axis=1)[usual] / np.abs(expected).max(axis=1)[usual]
    assert (error < 0.02).all()
    assert error.max() > 0  # activations are rounded too
    assert (together[3] == 0).all()
    for row in range(len(x)):
        for count in (1, 2):
            alone = session.run(None, {"x": np.repeat(x[row : row + 1], count, axis=0)})[0]
            np.testing.assert_array_equal(alone, np.repeat(together[row : row + 1], count, axis=0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_none(value: float, tmp_path: Path) -> None:
    session = product(np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32), tmp_path)
    x = np.ones((3, 32), np.float32)
    x[1] = value
    (found,) = session.run(None, {"x": x})
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


def test_products_with_extreme_codes_are_exact(tmp_path: Path) -> None:
    """Without VNNI quick sums of such products overflow 16 bits, unless the session asks for exact ones, as ours do."""
    session = product(np.ones((64, 16), np.float32), tmp_path)
    (found,) = session.run(None, {"x": np.ones((2, 64), np.float32)})
    np.testing.assert_allclose(found, 64, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_product_of_every_family_is_lowered(name: str, request: pytest.FixtureRequest) -> None:
    source = open_bundle(request.getfixturevalue(name)).graph("step", "fp32")
    before = [node for node in onnx.load(source, load_external_data=False).graph.node if node.op_type == "MatMul"]
    model = lower_for_onnxruntime(source, "int8", 5, rows=True)
    after = Counter(node.op_type for node in model.graph)
    assert after["MatMul"] == after["MatMulNBits"] == 0
    assert after["MatMulIntegerToFloat"] == len(before)
    assert after["QuantizeLinear"] == len({node.input[0] for node in before}) < len(before)


def test_a_scale_that_only_multiplies_is_carried_past_the_next_product(bundle: Path) -> None:
    model = lower_for_onnxruntime(open_bundle(bundle).graph("step", "fp32"), "int8", 5, rows=True)
    products = {node.outputs[0] for node in model.graph if node.op_type == "MatMulIntegerToFloat"}
    gates = [
        node
        for node in model.graph
        if node.op_type == "Mul" and products & set(node.inputs) and "product" not in str(node.outputs[0].name)
    ]
    layers = open_bundle(bundle).model.layers
    unscaled = [node for node in gates if any(use.node.op_type == "Abs" for use in node.outputs[0].uses())]
    assert len(unscaled) == layers


@pytest.mark.parametrize(("name", "schedule", "limit"), [("bundle", "zipar:2", 0.06), ("arpg_bundle", "arpg:6", 0.15)])
def test_logits_stay_close_to_float32(
    name: str, schedule: str, limit: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    model = lower_for_onnxruntime(opened.graph("step-logits", "fp32"), "int8", 5, rows=True)
    path = write_model(model, tmp_path, "step")[0]
    comparison = Comparison(opened, schedule)
    follower = OnnxRuntimeEngine(opened, "int8", 1, graph="step-logits", path=path)
    requests = spread(opened, (schedule,), 12, 3, 2.0, 12)
    dict(generate(opened, PairedEngine(opened, follower, comparison, 1), requests, "", lambda *_: None))
    found = comparison.result()
    assert found.tokens == 12 * opened.model.cells
    assert found.top1 > 0.85
    assert 0 < found.logit_error < limit


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_has_the_same_bits_whatever_its_batch(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    model = lower_for_onnxruntime(opened.graph("step-logits", "fp32"), "int8", 5, rows=True)
    path = write_model(model, tmp_path, "step")[0]
    engine = OnnxRuntimeEngine(opened, "int8", threads=1, graph="step-logits", path=path)
    alone, among = (steps(engine, opened, images) for images in (1, 4))
    engine.close()
    for key, array in alone.items():
        assert np.abs(array).max() > 0
        np.testing.assert_array_equal(among[key][: len(array)], array, err_msg=key)
        assert not np.array_equal(among[key][len(array) : 2 * len(array)], array)


def steps(engine: OnnxRuntimeEngine, opened: Bundle, images: int) -> dict[str, NDArray[np.float32]]:
    """Steps of 1, 3 and 8 tokens without guidance: logits and caches. Image i's tokens depend on i alone."""
    model = opened.model
    engine.prepare(images=images, rows=images, slots=12, zero_slots=0)
    found, first = {}, 0
    for width in (1, 3, 8):
        queries = width if model.queries else 0
        buffers = engine.buffers(width, queries)
        for image in range(images):
            buffers.tokens[image] = (np.arange(width) * 5 + image * 3 + width) % model.vocabulary
        buffers.positions[:] = 1 + np.arange(first, first + width)
        buffers.write_index[:] = first
        buffers.mask[:] = np.arange(12) <= np.arange(first, first + width)[:, None]
        if buffers.query_positions is not None:
            buffers.query_positions[:] = 1 + np.arange(queries)
        engine.run(width, queries)
        assert buffers.logits is not None
        found[f"logits of {width}"] = buffers.logits.copy()
        first += width
    return {**found, **{name: engine.cache(name).copy() for name in cache_names(model.caches)}}


def test_the_engine_is_built_by_rows_where_that_is_asked_for(bundle_copy: Path) -> None:
    built = onnxruntime.build(bundle_copy, "int8", quantization="rows")
    opened = open_bundle(bundle_copy)
    assert built.identity["quantization"] == "rows"
    assert "product_milliseconds" not in built.identity
    nodes = Counter(node.op_type for node in ir.load(opened.path(built.identity["graph"])).graph)
    assert nodes["MatMulIntegerToFloat"] == 11
    lines: list[str] = []
    verify_bundle(bundle_copy, lines.append)
    assert "engine onnxruntime int8: same tokens alone and in a batch" in lines
    assert any("jacobi:8 gives ntp's tokens for 4 of 4 images" in line for line in lines)


@pytest.mark.parametrize("form", ["blocks", "rows"])
def test_a_build_takes_the_quicker_and_writes_down_why(
    bundle_copy: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = try_products(open_bundle(bundle_copy))
    monkeypatch.setattr(product_trial, "try_products", lambda _: Tried(tried.seconds, form))
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--precision", "int8"])
    assert done.exit_code == 0, done.output
    identity = open_bundle(bundle_copy).engine("onnxruntime", "int8")
    assert identity["quantization"] == form
    times = identity["product_milliseconds"]
    assert times == {
        name: {str(width): pytest.approx(1000 * one, abs=1e-3) for width, one in seconds.items()}
        for name, seconds in tried.seconds.items()
    }
    message = f"in blocks and by rows: 1: {times['blocks']['1']:g} and {times['rows']['1']:g}, "
    for output in (done.output, CliRunner().invoke(main, ["inspect", str(bundle_copy)]).output):
        assert message in output
        assert f"; built {form}" in output
    with Runner.open(bundle_copy, precision="int8", threads=1) as runner:
        assert runner.generate([1], schedule="ntp", greedy=True).tokens.shape == (1, 64)


@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_products_are_timed_at_every_width_of_the_stored_schedules(name: str, request: pytest.FixtureRequest) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    tried = try_products(opened)
    widths = {width for name in opened.specifications for width in opened.schedule(name).widths}
    assert set(tried.seconds) == {"blocks", "rows"}
    for seconds in tried.seconds.values():
        assert set(seconds) == widths
        assert all(0 < one < 10 for one in seconds.values())
    assert tried.quicker in tried.seconds


@pytest.mark.parametrize(
    ("blocks", "rows", "schedules", "expected"),
    [
        ({1: 10, 4: 30}, {1: 9, 4: 20}, [{1: 64}], "rows"),
        ({1: 10, 4: 30}, {1: 11, 4: 20}, [{1: 64}], "blocks"),
        ({1: 10, 4: 30}, {1: 11, 4: 20}, [{1: 64}, {1: 8, 4: 14}], "rows"),
        ({1: 10}, {1: 9.9}, [{1: 64}], "blocks"),  # within noise
    ],
)
def test_rows_are_taken_where_they_save_an_image_more_than_noise(
    blocks: dict[int, float], rows: dict[int, float], schedules: list[dict[int, int]], expected: str
) -> None:
    assert quicker({"blocks": blocks, "rows": rows}, schedules) == expected


def test_scales_of_products_are_looked_at(bundle_copy: Path) -> None:
    built = onnxruntime.build(bundle_copy, "int8", quantization="rows")
    opened = open_bundle(bundle_copy)
    graph = ir.load(opened.path(built.identity["graph"])).graph
    stored = graph.initializers["output.weight.scales"].const_value
    assert isinstance(stored, ir.ExternalTensor)
    path = opened.path(built.identity["weights"])
    content = bytearray(path.read_bytes())
    content[stored.offset : stored.offset + 4] = np.float32(-1).tobytes()
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"output\.weight\.scales is not a positive number"):
        check_graphs(opened, [built.identity["graph"]])


def test_blocks_that_a_bundle_stores_are_not_rounded_to_rows(tmp_path: Path) -> None:
    save_file(random_weights(CONFIG, 3), tmp_path / "x.safetensors")
    root = tmp_path / "stored.bundle"
    export_bundle(ExportJob(FAMILY, CONFIG, tmp_path / "x.safetensors", None, root, ["ntp"], precision="int8"))
    with pytest.raises(EngineError, match="stores its weights in blocks, which are not rounded again: leave out rows"):
        onnxruntime.build(root, "int8", quantization="rows")
    identity = onnxruntime.build(root, "int8").identity
    assert identity["quantization"] == "blocks"
    assert "product_milliseconds" not in identity
