"""Bundles that draw by noise: what is drawn, and that schedules, batches and drafts change nothing of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from click.testing import CliRunner
from oracle import Decoder
from tiny import CONFIG

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.engines.verify import verify_bundle
from arforge.runner import Runner, open_bundle
from arforge.runner.randomness import Randomness, noise

CLASSES, SEEDS = [0, 2, 7, 9] * 3, [2**64 - 1, *range(100, 111)]
SETTINGS: list[dict[str, Any]] = [
    {"guidance": 2.0},
    {"guidance": 1.0, "temperature": 1.4},
    {"guidance": 1.5, "temperature": 0.7, "top_k": 9},
    {"guidance": 2.0, "top_k": 20, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_are_the_largest_of_noise_and_the_published_filters(
    noise_runner: Runner, decoder: Decoder, settings: dict[str, Any]
) -> None:
    tokens = noise_runner.generate(CLASSES, SEEDS, schedule="ntp", **settings).tokens
    logits = oracle.teacher_forced(decoder, CLASSES, tokens, settings["guidance"])
    shares = oracle.probabilities(logits, **{key: value for key, value in settings.items() if key != "guidance"})
    expected = oracle.draw_by_noise(shares, oracle.noise(SEEDS, 64, shares.shape[-1]))
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("schedule", ["ntp", "zipar:3"])
def test_an_image_is_the_same_alone_and_in_any_batch(noise_runner: Runner, schedule: str) -> None:
    together = noise_runner.generate(CLASSES, SEEDS, schedule=schedule, guidance=2.0).tokens
    for batch in (1, 5):
        alone = noise_runner.generate(CLASSES, SEEDS, schedule=schedule, guidance=2.0, batch=batch).tokens
        np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("window", [2, 5, 16, 64])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_running_ahead_gives_next_tokens_own_tokens(
    noise_runner: Runner, window: int, settings: dict[str, Any]
) -> None:
    wanted = noise_runner.generate(CLASSES, SEEDS, schedule="ntp", **settings)
    found = noise_runner.generate(CLASSES, SEEDS, schedule=f"jacobi:{window}", **settings)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert (found.passes < 64).all()


def test_drafts_hold_more_often_than_with_one_number_a_cell(noise_runner: Runner, runner: Runner) -> None:
    request: dict[str, Any] = {"schedule": "jacobi:16", "guidance": 2.0}
    passes = [opened.generate(CLASSES * 4, **request).passes.mean() for opened in (noise_runner, runner)]
    assert passes[0] < 0.9 * passes[1]


def test_greedy_tokens_are_those_of_the_other_sampler(noise_runner: Runner, runner: Runner) -> None:
    request: dict[str, Any] = {"schedule": "zipar:3", "guidance": 2.0, "greedy": True}
    expected = runner.generate(CLASSES, **request).tokens
    np.testing.assert_array_equal(noise_runner.generate(CLASSES, **request).tokens, expected)


def test_numbers_lie_within_0_and_1_and_are_exact_in_float32() -> None:
    numbers = np.concatenate([noise(seed, cell, 4099) for seed in (0, 2**64 - 1) for cell in (0, 8099)])
    assert (numbers > 0).all()
    assert (numbers < 1).all()
    halves = numbers.astype(np.float64) * 2**24
    np.testing.assert_array_equal(halves % 2, 1)  # odd multiples of 2^-24
    np.testing.assert_array_equal(noise(7, 3, 50), noise(7, 3, 4099)[:50])
    np.testing.assert_array_equal(noise(7, 3, 50), oracle.noise([7], 4, 50)[0, 3])


def test_a_window_draws_with_the_numbers_of_its_canvas_cells(noise_runner: Runner) -> None:
    whole = Randomness.of(np.array([4, 9], np.uint64), 30)
    part = whole.part(slice(1, 2), np.array([12, 3, 29]))
    engine = noise_runner._live_engine()
    engine.prepare(1, 2, 4, 0)
    buffers = engine.buffers(3)
    part.fill(buffers, np.array([[2, 0]]), np.array([0, 2]))
    assert buffers.noise is not None
    for row, cell in ((0, 29), (2, 12)):
        np.testing.assert_array_equal(buffers.noise[0, row], noise(9, cell, buffers.noise.shape[-1]))


def test_the_bundle_has_one_graph_that_draws_and_verifies(noise_bundle: Path) -> None:
    opened = open_bundle(noise_bundle)
    assert opened.sampler.kind == "noise"
    assert [graph.name for graph in opened.graphs] == ["step-noise", "step-logits"]
    operators = [
        node.op_type for node in onnx.load(opened.graph("step-noise", "fp32"), load_external_data=False).graph.node
    ]
    assert operators.count("CumSum") == 0
    lines: list[str] = []
    verify_bundle(noise_bundle, lines.append)
    assert any("same tokens alone and in a batch" in line for line in lines)


@pytest.mark.parametrize("quantization", ["blocks", "rows", "static"])
def test_int8_draws_by_noise_too(noise_bundle: Path, tmp_path: Path, quantization: str) -> None:
    path = shutil.copytree(noise_bundle, tmp_path / "noise.bundle")
    if quantization == "static":
        calibrate(CalibrationJob(path, Rule("max", 99.99), samples=4, check=2, trials=0))
    onnxruntime.build(path, "int8", quantization=quantization)
    with Runner.open(path, precision="int8", threads=1) as opened:
        wanted = opened.generate(CLASSES, SEEDS, schedule="ntp", guidance=2.0).tokens
        assert len(np.unique(wanted)) > 8
        if quantization != "static":
            found = opened.generate(CLASSES, SEEDS, schedule="jacobi:8", guidance=2.0).tokens
            np.testing.assert_array_equal(found, wanted)


def test_the_command_line_exports_it(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({name: value for name, value in asdict(CONFIG).items() if value is not None}))
    arguments = ["export", "llamagen", "--config", config, "--checkpoint", checkpoint, "--sampler", "noise"]
    output = tmp_path / "noisy.bundle"
    result = CliRunner().invoke(main, [*map(str, arguments), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert open_bundle(output).sampler.kind == "noise"
