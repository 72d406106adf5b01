"""Real TensorRT-RTX engines of the families that read ids of prompts, in every precision: looked into, and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from fake_gpu import RTX, FakeGpu, fake_library
from made_once import made_once
from tiny_llama import (
    EMU3,
    JANUS,
    JANUS_WORDS,
    LUMINA,
    janus_weights,
    llama_weights,
    save_folder,
    save_janus,
    save_tokenizer,
)

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.cli import main
from arforge.engines import tensorrt
from arforge.engines.lowered_session import session_of
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_graph import source_precision, typed_graph
from arforge.engines.tensorrt_layers import check_layers, expected, is_int4_product, load_layers
from arforge.engines.tensorrt_run import compare_engine
from arforge.engines.verify import verify_bundle
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_subjects

SIZES = {"hidden_size": 64, "intermediate_size": 96}  # which blocks of 4 bits divide
GRIDS = {"lumina": "4x4", "emu3": "3x5", "janus": "4x4"}
PRECISIONS = ("fp16", "int8", "int4")


def save(family: str, folder: Path) -> Path:
    if family == "janus":
        config = {**JANUS, "language_config": {**JANUS["language_config"], **SIZES}}
        save_janus(folder, janus_weights(5, config), config)
        save_tokenizer(folder, dict(zip(JANUS_WORDS, range(270, 275), strict=True)))
        return folder
    config = {**(LUMINA if family == "lumina" else EMU3), **SIZES}
    return save_folder(folder, llama_weights(config, 3, 2 if family == "lumina" else None), config)


@pytest.fixture(scope="module", params=list(GRIDS))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A family's bundle of float32 weights with an engine of each precision."""
    family = request.param

    def make(path: Path) -> None:
        folder = save(family, path.with_name(f"{family}-folder"))
        words = ("export", family, "--checkpoint", folder, "--grid", GRIDS[family], "--output", path)
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        subjects = sample_subjects(open_bundle(path).model, 4)
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=4, check=0, subjects=subjects))
        for precision in PRECISIONS:
            job = BuildJob(path, RTX, precision, (), ["zipar:2"], [1, 4], filters=True, prefill_widths=[8])
            tensorrt.build(job)

    return open_bundle(made_once(tmp_path_factory, f"rtx-{family}.bundle", make))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))


def fake(bundle: Bundle, precision: str) -> tuple[Bundle, dict[str, Any], Any, FakeGpu]:
    """What an engine is opened with."""
    identity, gpu = bundle.engine(RTX, precision), FakeGpu()
    library = fake_library(gpu, identity["library"].split()[1])
    library.trt.add(bundle, identity)
    return bundle, identity, library, gpu


def test_engines_are_what_their_precision_says(opened: Bundle) -> None:
    products = {"lumina": 11, "emu3": 11, "janus": 12}[opened.model.family]  # Janus' head is of two
    wanted_kinds = {"fp16": (0, 0, products), "int8": (products, 0, 0), "int4": (0, products - 1, products)}
    for precision, kinds in wanted_kinds.items():
        identity = opened.engine(RTX, precision)
        wanted = expected(ir.load(opened.path(identity["lowered"])), opened.model.caches)
        assert identity["attention"]["lowering"] == "fused"
        assert (len(wanted.caches), len(wanted.attention)) == (4, 2)
        assert (len(wanted.quantized), len(wanted.narrow), len(wanted.low)) == kinds
        layers = load_layers(opened.path(identity["layers"]).read_bytes())
        assert len(identity["profiles"]) == 3  # two widths of steps, and passes of prompts
        assert check_layers(layers, wanted, 3) == []
        for profile in range(3) if precision == "int4" else ():
            mine = [layer for layer in layers if layer.profile == profile and is_int4_product(layer)]
            assert {name for layer in mine for name in layer.origin} >= set(wanted.narrow)


def test_verification_looks_into_them(opened: Bundle) -> None:
    lines: list[str] = []
    verify_bundle(opened.root, lines.append, target=RTX)
    assert len([line for line in lines if "4 caches updated in place, attention fused" in line]) == 3
    products = [line.partition("products: ")[2] for line in lines if "rtx int4" in line and "profile" in line]
    assert len(products) == 3
    assert all(
        re.match(r"\d+ half, 1[01] int4, attention kernels: 2, copied caches: 0 bytes$", found) for found in products
    ), products


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_are_those_of_the_graph_of_that_precision(opened: Bundle, precision: str) -> None:
    """Three prompts of unequal lengths, on a GPU that is not there."""
    graph = opened.graph("step", source_precision(precision))
    session = session_of(typed_graph(opened, precision), graph.parent)
    reference = OnnxRuntimeEngine(opened, precision, path=graph, session=session)
    engine = TensorRTEngine(*fake(opened, precision))
    ids = [np.arange(1, 1 + length) for length in (4, 17, 1)]
    with Runner(opened, engine) as mine, Runner(opened, reference) as wanted:
        for settings in ({"greedy": True}, {"guidance": 3.0}, {"negative_ids": np.array([3, 1, 2]), "top_k": 9}):
            asked: dict[str, Any] = {"unconditional": "image", "top_k": 0, **settings}
            if "negative_ids" in asked:
                del asked["unconditional"]
            for schedule in ("ntp", "zipar:2"):
                request = {"ids": ids, "seeds": [9, 2**64 - 1, 6], "schedule": schedule, **asked}
                expected_tokens = wanted.generate(**request).tokens
                np.testing.assert_array_equal(mine.generate(**request).tokens, expected_tokens)
                assert len(np.unique(expected_tokens)) > 5


def test_four_bits_agree_with_onnx_runtime_step_by_step(opened: Bundle) -> None:
    """As `verify` on a machine with a GPU."""
    bundle, identity, library, gpu = fake(opened, "int4")
    found = compare_engine(bundle, identity, library, "ntp", gpu)  # type: ignore[arg-type]
    assert found.steps > 10
    assert found.largest_error < 1e-2
    assert found.same_step_tokens == 1
