"""TensorRT-RTX engines with weights of 4 bits, of bundles that store blocks and of others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import save_file
from tiny import CONFIG, random_weights

from arforge.engines.tensorrt import BuildJob, build
from arforge.engines.tensorrt_blocks import blocks_for_tensorrt
from arforge.engines.tensorrt_graph import lower_for_tensorrt, typed_graph
from arforge.engines.tensorrt_layers import check_layers, expected, is_int4_product, load_layers
from arforge.engines.tensorrt_weights import KERNEL_BYTES, check_weights, weights_of
from arforge.engines.verify import verify_bundle
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.export.stored_values import stored_values
from arforge.export.verify import stored_weights
from arforge.export.wide_weights import widen
from arforge.runner import EngineError, open_bundle
from arforge.runner.bundle import Bundle

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that stores its weights in blocks of 4 bits."""
    folder = tmp_path_factory.mktemp("stored")
    save_file(random_weights(CONFIG, 3), folder / "x.safetensors")
    job = ExportJob(FAMILY, CONFIG, folder / "x.safetensors", None, folder / "x.bundle", ["ntp"], precision="int4")
    export_bundle(job)
    return open_bundle(folder / "x.bundle")


def test_every_product_but_the_last_reads_weights_of_four_bits(stored: Bundle) -> None:
    built = build(BuildJob(stored.root, RTX, "int4"))
    opened = open_bundle(stored.root)
    assert built.identity["graph"] == "graphs/fp32/step.onnx"
    assert built.identity["types"] == "half"
    assert built.identity["attention"]["lowering"] == "fused"
    wanted = expected(ir.load(opened.path(built.identity["lowered"])), opened.model.caches)
    assert len(wanted.narrow) == 5 * opened.model.layers
    assert len(wanted.low) == 5 * opened.model.layers + 1
    layers = load_layers(opened.path(built.identity["layers"]).read_bytes())
    assert check_layers(layers, wanted, 1) == []
    assert {name for layer in layers if is_int4_product(layer) for name in layer.origin} >= set(wanted.narrow)
    lines: list[str] = []
    verify_bundle(stored.root, lines.append, target=RTX)
    assert any("attention fused" in line and "inputs and outputs as the format says" in line for line in lines)


def test_an_engine_of_floats_is_no_engine_of_four_bits(stored: Bundle) -> None:
    built = build(BuildJob(stored.root, RTX, "int4"))
    opened = open_bundle(stored.root)
    wanted = expected(ir.load(opened.path(built.identity["lowered"])), opened.model.caches)
    layers = load_layers(opened.path(built.identity["layers"]).read_bytes())
    floats = [
        replace(layer, constants=tuple(replace(one, dtype="Half") for one in layer.constants)) for layer in layers
    ]
    problems = check_layers(floats, wanted, 1)
    assert len(problems) == len(wanted.narrow)
    assert all("does not read weights of 4 bits" in problem for problem in problems)


def test_the_engine_has_the_size_of_weights_of_four_bits(stored: Bundle) -> None:
    built = build(BuildJob(stored.root, RTX, "int4"))
    opened = open_bundle(stored.root)
    weights = weights_of(ir.load(opened.path(built.identity["lowered"])))
    dim, hidden = CONFIG.dim, 192
    assert weights.narrow == CONFIG.n_layer * (4 * dim * dim + 3 * dim * hidden)  # all products but the head
    layers = load_layers(opened.path(built.identity["layers"]).read_bytes())
    assert check_weights(layers, built.engine_bytes, weights, 1) == []
    widened = weights.bytes + KERNEL_BYTES * len(layers) + 1
    (problem,) = check_weights(layers, widened, weights, 1)
    assert f"the engine has {widened} bytes, at most {widened - 1} are expected of weights of" in problem
    (problem,) = check_weights(layers, built.engine_bytes, replace(weights, narrow=weights.narrow + 2), 1)
    assert problem.startswith(f"profile 0: products read {weights.narrow} numbers of 4 bits, the graph has ")
    assert check_weights(layers, 1 << 40, replace(weights, narrow=0), 1) == []  # of an engine of floats nothing is said
    lines: list[str] = []
    verify_bundle(stored.root, lines.append, target=RTX)
    assert any(f"; {weights}" in line for line in lines)


def test_codes_and_scales_stand_for_the_stored_values(stored: Bundle) -> None:
    model = lower_for_tensorrt(stored, "int4", 64, 1, False, "auto").model
    values = stored_weights(stored.graph("step", "fp32"))
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == 10
    for node in nodes:
        codes, scales = node.inputs
        assert codes is not None
        assert scales is not None
        assert codes.const_value is not None
        assert scales.const_value is not None
        assert (codes.dtype, scales.dtype) == (ir.DataType.INT4, ir.DataType.FLOAT16)
        tensor = stored_values(codes.const_value)
        assert tensor.dtype == ml_dtypes.int4
        scale = stored_values(scales.const_value).astype(np.float32)
        found = tensor.astype(np.float32) * np.repeat(scale, tensor.shape[1] // scale.shape[1], axis=1)
        wanted = values[str(codes.name)].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-3)


def block_sizes(model: ir.Model) -> list[int]:
    return [node.attributes["block_size"].as_int() for node in model.graph if node.op_type == "DequantizeLinear"]


def test_tensorrt_is_given_no_blocks_of_a_size_that_it_does_not_take(stored: Bundle) -> None:
    """Of 64 inputs two blocks are of 32 each, of the 192 inputs of w2 there are three of 64."""
    rtx = typed_graph(stored, "int4", RTX)
    assert sorted(set(block_sizes(rtx))) == [32, 64]
    other = typed_graph(stored, "int4", "tensorrt")
    assert block_sizes(other) == [size for size in block_sizes(rtx) if size == 64] != []
    weight = other.graph.initializers["layers.0.feed_forward.w1.weight"].const_value
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT16
    wanted = stored_weights(stored.graph("step", "fp32"))["layers.0.feed_forward.w1.weight"].numpy()
    np.testing.assert_allclose(stored_values(weight).astype(np.float32).T, wanted, rtol=1e-3)  # rounded once


def test_a_graph_of_small_blocks_alone_is_refused_for_tensorrt(stored: Bundle) -> None:
    model = ir.load(stored.graph("step", "fp32"))
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for node in products:
        made = node.inputs[1].producer() if node.inputs[1] is not None else None
        source = made.inputs[0].producer() if made is not None and made.inputs[0] is not None else None
        if source is not None and source.attributes["block_size"].as_int() == 64:
            node.op_type = "Removed"
    widen(model, blocks=(8,))
    with pytest.raises(EngineError, match="whose weights blocks fit, which for tensorrt have 64, 128 inputs"):
        blocks_for_tensorrt(model, "tensorrt")


def test_blocks_are_made_of_float_weights(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    built = build(BuildJob(copy, RTX, "int4", schedules=["ntp"]))
    opened = open_bundle(copy)
    wanted = expected(ir.load(opened.path(built.identity["lowered"])), opened.model.caches)
    assert len(wanted.narrow) == 5 * opened.model.layers
    model = lower_for_tensorrt(opened, "int4", 64, 1, False, "auto").model
    values = stored_weights(opened.graph("step", "fp32"))
    name = "layers.1.feed_forward.w1.weight"
    codes, scales = (model.graph.initializers[f"{name}.{part}"].const_value for part in ("codes", "scales"))
    assert codes is not None
    assert scales is not None
    scale = stored_values(scales).astype(np.float32)
    found = stored_values(codes).astype(np.float32).reshape(*scale.shape, -1) * scale[..., None]
    error = np.abs(found.reshape(values[name].shape) - values[name].numpy())
    assert 0 < np.square(error).mean() < 0.02 * np.square(values[name].numpy()).mean()
