"""Engines in blocks of bundles that store their weights in each precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.torch import save_file
from tiny import CONFIG, random_weights

from arforge.engines import onnxruntime
from arforge.engines.graph_data import check_graphs
from arforge.engines.onnxruntime_blocks import quantized_blocks
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.export.quantization import dequantized, unpacked
from arforge.export.stored_values import stored_values
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.bundle import Bundle, Precision


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny bundle for each precision that weights are stored in."""
    folder = tmp_path_factory.mktemp("stored")
    save_file(random_weights(CONFIG, 3), folder / "x.safetensors")
    found = {}
    precisions: tuple[Precision, ...] = ("bf16", "int8", "int4")
    for precision in precisions:
        found[precision] = folder / f"{precision}.bundle"
        job = ExportJob(FAMILY, CONFIG, folder / "x.safetensors", None, found[precision], ["ntp"], precision=precision)
        export_bundle(job)
    return found


def blocks_of(bundle: Bundle, precision: str) -> list[ir.Node]:
    graph = ir.load(bundle.path(bundle.engine("onnxruntime", precision)["graph"])).graph
    return [node for node in graph if node.op_type == "MatMulNBits"]


def greedy(path: Path, precision: str | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    with Runner.open(path, precision=precision, threads=1) as runner:
        return runner.generate(range(10), schedule="ntp", guidance=2.0, greedy=True).tokens


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_stored_blocks_are_read_where_they_lie(stored: dict[str, Path], precision: str) -> None:
    path = stored[precision]
    before = open_bundle(path)
    built = onnxruntime.build(path, precision)
    opened = open_bundle(path)
    assert "weights" not in built.identity
    assert built.identity["quantization"] == "blocks"
    new = opened.files.keys() - before.files.keys()
    assert {Path(name).suffix for name in new} == {".json", ".onnx"}
    nodes = blocks_of(opened, precision)
    bits = Counter(node.attributes["bits"].as_int() for node in nodes)
    assert bits == ({8: 11} if precision == "int8" else {4: 10, 8: 1})
    assert not [node for node in ir.load(opened.path(built.identity["graph"])).graph if "Dequantize" in node.op_type]
    check_graphs(opened, [name for name in opened.files if name.endswith(".onnx")])


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_operators_weights_are_those_of_the_standard_graph(stored: dict[str, Path], precision: str) -> None:
    onnxruntime.build(stored[precision], precision)
    opened = open_bundle(stored[precision])
    standard = ir.load(opened.graph("step", "fp32")).graph.initializers
    for node in blocks_of(opened, precision):
        codes, scales = (value.const_value for value in node.inputs[1:3] if value is not None)
        assert codes is not None
        assert scales is not None
        bits = node.attributes["bits"].as_int()
        name = str(codes.name).removesuffix(".blocks")
        flat = stored_values(codes).reshape(codes.shape[0], -1)
        found = dequantized(unpacked(flat, bits), stored_values(scales), bits)
        wanted = stored_values(standard[name].const_value).astype(np.uint8)  # type: ignore[arg-type]
        scale = stored_values(standard[f"{name}.scales"].const_value)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, dequantized(wanted, scale, bits))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_tokens_are_nearly_those_of_the_standard_graph(stored: dict[str, Path], precision: str) -> None:
    path = stored[precision]
    onnxruntime.build(path, precision)
    onnxruntime.build(path, "fp32")
    assert (
        open_bundle(path).engine("onnxruntime", "fp32")["graph"]
        != (open_bundle(path).engine("onnxruntime", precision)["graph"])
    )
    first = greedy(path, "fp32")[:, 0]  # what follows one other token may all differ
    assert (greedy(path, precision)[:, 0] == first).mean() >= 0.7
    np.testing.assert_array_equal(greedy(path), greedy(path, precision))  # the default is what is stored


@pytest.mark.parametrize(("kept", "other"), [("int8", "int4"), ("int4", "int8")])
def test_stored_blocks_are_not_rounded_again(stored: dict[str, Path], kept: str, other: str) -> None:
    message = (
        f"stores its weights in {kept}, of which no {other} engine is made: build {kept}, or export the checkpoint"
    )
    with pytest.raises(EngineError, match=message):
        onnxruntime.build(stored[kept], other)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_blocks_are_made_of_weights_in_sixteen_bits(stored: dict[str, Path], precision: str) -> None:
    path = stored["bf16"]
    built = onnxruntime.build(path, precision)
    opened = open_bundle(path)
    assert built.identity["weights"] in opened.files
    standard = ir.load(opened.graph("step", "fp32")).graph.initializers
    for node in blocks_of(opened, precision):
        codes, scales = (value.const_value for value in node.inputs[1:3] if value is not None)
        assert codes is not None
        assert scales is not None
        bits, block = (node.attributes[name].as_int() for name in ("bits", "block_size"))
        name = str(codes.name).removesuffix(".blocks")
        wanted = quantized_blocks(stored_values(standard[name].const_value), block, bits)  # type: ignore[arg-type]
        np.testing.assert_array_equal(stored_values(codes), wanted[0])
        np.testing.assert_array_equal(stored_values(scales), wanted[1])
    assert greedy(path, precision).shape == (10, 64)


def test_sixteen_bits_run_in_float32(stored: dict[str, Path]) -> None:
    onnxruntime.build(stored["bf16"])
    assert greedy(stored["bf16"]).shape == (10, 64)
    kinds = {t.data_type for t in onnx.load(open_bundle(stored["bf16"]).graph("step", "fp32")).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds


def test_engines_beside_each_other_keep_their_graphs(stored: dict[str, Path]) -> None:
    path = stored["int8"]
    for precision in ("fp32", "int8", "fp32", "int8"):
        onnxruntime.build(path, precision)
    opened = open_bundle(path)
    own = [name for name in opened.files if Path(name).name.startswith("step-onnxruntime-")]
    plain, low = (opened.engine("onnxruntime", precision) for precision in ("fp32", "int8"))
    assert set(own) == {plain["graph"], low["graph"], low["own_graph"]}


def test_columns_pass_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(1).standard_normal((40, 23)).astype(np.float32)
    whole = quantized_blocks(weight, 16, 4)
    monkeypatch.setattr("arforge.engines.onnxruntime_blocks.COLUMNS", 4 * 48 * 5)
    for one, other in zip(quantized_blocks(weight, 16, 4), whole, strict=True):
        np.testing.assert_array_equal(one, other)
