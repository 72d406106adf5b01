"""The image decoder of a tokenizer of 16 bits, as TensorRT is given it: in float32, and nothing of it stays behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_graph import decoder_graph
from arforge.engines.trtexec import dry_run
from arforge.engines.verify import verify_bundle
from arforge.export.stored_values import stored_values
from arforge.runner import open_bundle

RTX = "tensorrt-rtx"


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def types(graph: Path) -> set[ir.DataType | None]:
    return {value.dtype for value in ir.load(graph).graph.initializers.values() if value.dtype != ir.DataType.INT64}


@pytest.fixture
def copy(bf16_tokenizer_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bf16_tokenizer_bundle, tmp_path / "copy.bundle"))


def test_its_weights_are_widened_and_its_images_stay(copy: Path) -> None:
    bundle = open_bundle(copy)
    own = bundle.graph("decoder", "fp32")
    graph, new = decoder_graph(bundle)
    assert ir.DataType.BFLOAT16 in types(own)
    assert types(graph) == {ir.DataType.FLOAT}
    assert set(new) == {copy / name for name in files(copy) - set(bundle.files) - {"manifest.json"}}
    stored, wide = (ir.load(path).graph.initializers for path in (own, graph))
    for name, value in stored.items():
        if value.dtype == ir.DataType.BFLOAT16:
            one, other = value.const_value, wide[name].const_value
            assert one is not None
            assert other is not None
            np.testing.assert_array_equal(stored_values(one).astype(np.float32), stored_values(other))
    tokens = np.random.default_rng(0).integers(0, 32, (2, 8, 8))
    images = [onnxruntime.InferenceSession(path).run(None, {"tokens": tokens})[0] for path in (own, graph)]
    np.testing.assert_array_equal(*images)


def test_a_decoder_of_float32_is_given_as_it_is(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert decoder_graph(opened) == (opened.graph("decoder", "fp32"), ())


def test_it_becomes_an_engine(copy: Path) -> None:
    before = files(copy)
    tensorrt.build(BuildJob(copy, RTX, "fp16", ["8.6"], ["ntp"], [1]))
    opened = open_bundle(copy)
    identity = opened.engine(RTX, "fp16")
    assert identity["decoder_reason"] is None
    assert opened.path(identity["decoder"]).stat().st_size > 1e6
    assert not [name for name in files(copy) - before if "decoder-tensorrt" in name]
    assert files(copy) <= {*opened.files, "manifest.json", *before}
    verify_bundle(copy, lambda line: None, target=RTX)


def test_a_dry_run_keeps_the_graph_that_its_command_reads(bf16_tokenizer_bundle: Path, tmp_path: Path) -> None:
    before = files(bf16_tokenizer_bundle)
    *_, command = dry_run(BuildJob(bf16_tokenizer_bundle, RTX, "fp16", schedules=["ntp"]), tmp_path / "graphs")
    name = next(word.removeprefix("--onnx=") for word in command.split() if word.startswith("--onnx="))
    assert types(tmp_path / "graphs" / name) == {ir.DataType.FLOAT}
    assert "--saveEngine=decoder-fp32.engine" in command
    tokens = np.random.default_rng(0).integers(0, 32, (1, 8, 8))
    graphs = (open_bundle(bf16_tokenizer_bundle).graph("decoder", "fp32"), tmp_path / "graphs" / name)
    np.testing.assert_array_equal(
        *(onnxruntime.InferenceSession(graph).run(None, {"tokens": tokens})[0] for graph in graphs)
    )
    assert files(bf16_tokenizer_bundle) == before
