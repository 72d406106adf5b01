"""Prompts with keys and values in 8 bits: they pass the graph of the images, and no row is another's business."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from low_caches import always_quicker
from tiny_ids import prompt_of

from arforge.calibration.agreement import Comparison
from arforge.calibration.taps import PairedEngine
from arforge.engines import onnxruntime
from arforge.engines.cache_trial import calibrate_caches
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.folded_graph import USUAL_ROWS
from arforge.runner.backends.onnxruntime_engine import FoldedGraph, OnnxRuntimeEngine
from arforge.runner.conditions import sample_subjects

LENGTHS = {"features": (5, 60, 5, 2, 118), "ids": (9, 31, 6, 140, 12)}  # of which one needs more slots than the others
SEEDS = [3, 1, 4, 1, 5]


def prompts_of(root: Path) -> dict[str, list[np.ndarray]]:
    kind = open_bundle(root).model.condition.kind
    if kind == "ids":
        return {kind: [prompt_of(length, seed) for seed, length in enumerate(LENGTHS[kind])]}
    random = np.random.default_rng(7)
    return {kind: [random.standard_normal((length, 48), np.float32) * 0.2 for length in LENGTHS[kind]]}


def built(source: Path, root: Path, quantization: str, caches: str = "int8") -> Path:
    shutil.copytree(source, root)
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        subjects = sample_subjects(open_bundle(root).model, 6) if caches == "int8" else None
        onnxruntime.build(root, "int8", quantization=quantization, caches=caches, subjects=subjects)
    return root


@pytest.fixture(
    params=["text_bundle rows", "text_bundle blocks", "ids_bundle rows", "ids_bundle blocks"], scope="module"
)
def low_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, quantization = request.param.split()
    return built(request.getfixturevalue(name), tmp_path_factory.mktemp("low") / "low.bundle", quantization)


def test_a_picture_does_not_depend_on_its_company(low_bundle: Path) -> None:
    ((kind, given),) = prompts_of(low_bundle).items()
    settings: dict[str, Any] = {"schedule": "zipar:4", "top_k": 20, "guidance": 2.0, "images": False}
    with Runner.open(low_bundle, precision="int8", threads=1) as runner:
        together = runner.generate(**{kind: given}, seeds=SEEDS, **settings).tokens
        assert runner._engine.cache_type == np.int8
        for batch in (1, 2, 4):
            parted = runner.generate(**{kind: given}, seeds=SEEDS, batch=batch, **settings).tokens
            np.testing.assert_array_equal(parted, together)
        backwards = runner.generate(**{kind: given[::-1]}, seeds=SEEDS[::-1], **settings).tokens
        np.testing.assert_array_equal(backwards[::-1], together)
        for index, one in enumerate(given):  # of which all but one are given 128 slots less
            alone = runner.generate(**{kind: [one]}, seeds=SEEDS[index : index + 1], **settings).tokens
            np.testing.assert_array_equal(alone[0], together[index])
        others = runner.generate(**{kind: given}, seeds=SEEDS, **{**settings, "guidance": 1.0}).tokens
        assert runner._engine._folded_rows == USUAL_ROWS  # opened once, for prompts, batches and images alone
    assert not np.array_equal(others, together)
    assert len({one.tobytes() for one in together}) == len(given)


@pytest.mark.parametrize("name", ["text_bundle", "ids_bundle"])
def test_prompts_are_held_apart_for_each_kind_of_caches(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(name)
    low, plain = (built(source, tmp_path / caches, "rows", caches) for caches in ("int8", "fp32"))
    given = prompts_of(low)
    with Runner.open(low, precision="int8", threads=1) as runner:
        drawn = []
        for schedule, kind in (("ntp", np.int8), ("jacobi:4", np.float32), ("ntp", np.int8), ("jacobi:4", np.float32)):
            drawn.append(runner.generate(**given, seeds=SEEDS, schedule=schedule, guidance=2.0, images=False).tokens)
            assert runner._engine.cache_type == kind
    np.testing.assert_array_equal(drawn[2], drawn[0])
    np.testing.assert_array_equal(drawn[3], drawn[1])
    with Runner.open(plain, precision="int8", threads=1) as runner:
        expected = runner.generate(**given, seeds=SEEDS, schedule="ntp", guidance=2.0, images=False).tokens
    np.testing.assert_array_equal(drawn[1], expected)  # running ahead gives what float32 caches give one by one


@pytest.mark.parametrize("name", ["text_bundle", "ids_bundle"])
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_logits_are_near_those_of_float32(
    name: str, schedule: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(name)
    opened = open_bundle(root)
    source = opened.graph("step-logits", "fp32")
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1, graph="step-logits")
    scales = calibrate_caches(opened, engine).scales
    engine.close()
    own = opened.model.positions == "sequence"
    path = write_model(lower_for_onnxruntime(source, "fp32", 5, scales=scales, own_positions=own), tmp_path, "step")[0]
    low = OnnxRuntimeEngine(opened, "fp32", 1, graph="step-logits", folded=FoldedGraph(path, 99))
    comparison = Comparison(opened, schedule)
    with Runner(opened, PairedEngine(opened, low, comparison, threads=1)) as runner:
        runner.generate(**prompts_of(root), seeds=SEEDS, schedule=schedule, guidance=2.0, images=False)
        assert low.cache_type == np.int8
    found = comparison.result()
    assert found.tokens == len(SEEDS) * opened.model.cells
    assert 0 < found.logit_error < 0.04
