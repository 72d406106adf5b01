"""Running ahead on drafts on TensorRT: the graph makes the masks, so images of a batch are at places of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_gpu import Opened

from arforge.runner import EngineError, Runner, open_bundle

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]


@pytest.fixture(scope="session")
def built(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """LlamaGen's for one and three images."""
    return build_copy(bundle, schedules=["ntp", "jacobi:6"], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built_noise(noise_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """One that draws by noise, for two images."""
    return build_copy(noise_bundle, schedules=["jacobi:6"], images=[2])


@pytest.mark.parametrize("settings", [{"guidance": 2.0}, {"guidance": 1.5, "top_k": 9}, {"guidance": 1.0}], ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_tokens_and_calls_are_those_of_onnxruntime(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str, settings: dict[str, Any]
) -> None:
    mine, engine, _ = open_fake(built)
    expected = runner.generate(CLASSES, SEEDS, schedule, **settings)
    np.testing.assert_array_equal(expected.tokens, runner.generate(CLASSES, SEEDS, "ntp", **settings).tokens)
    for batch in (1, 3):
        found = mine.generate(CLASSES, SEEDS, schedule, batch=batch, **settings)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
    assert engine.captured
    assert not engine.one_mask


def test_engines_have_a_profile_for_one_token_and_one_for_the_window_and_take_no_mask(built: Path) -> None:
    opened = open_bundle(built)
    identity = opened.engine("tensorrt-rtx", "fp32")
    assert identity["own_mask"]
    assert {(one["images"], one["width"]) for one in identity["profiles"]} == {(1, 1), (1, 6), (3, 1), (3, 6)}
    graph = onnx.load(opened.path(identity["lowered"]), load_external_data=False).graph
    assert "mask" not in {value.name for value in graph.input}


def test_other_schedules_are_refused_since_their_inputs_see_something_else(
    built: Path, open_fake: Callable[..., Opened]
) -> None:
    mine, _, _ = open_fake(built)
    with pytest.raises(EngineError, match="built for next-token decoding, in which all that is before is seen"):
        mine.generate(CLASSES, schedule="zipar:4")


def test_engines_of_other_schedules_keep_their_mask(bundle: Path, build_copy: Callable[..., Path]) -> None:
    both = open_bundle(build_copy(bundle, schedules=["zipar:4", "jacobi:6"], images=[1]))
    assert not both.engine("tensorrt-rtx", "fp32")["own_mask"]


def test_noise_is_drawn_there_too(built_noise: Path, noise_runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, _, _ = open_fake(built_noise)
    for settings in ({"guidance": 2.0}, {"guidance": 1.0, "temperature": 0.8}):
        expected = noise_runner.generate(CLASSES, SEEDS, "jacobi:6", **settings)
        found = mine.generate(CLASSES, SEEDS, "jacobi:6", batch=2, **settings)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
