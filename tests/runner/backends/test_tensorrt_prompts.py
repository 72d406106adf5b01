"""Prompts on the TensorRT backend: passes of their own, a mask a row, caches written by the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Opened

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.conditions import sample_features
from arforge.runner.step_graph import cache_names

SEEDS = [9, 2**64 - 1, 6, 5, 0]


@pytest.fixture(scope="session")
def built(text_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """For one and three images, with filters; prompts pass in one width."""
    return build_copy(text_bundle, schedules=["ntp", "zipar:4"], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built_narrow(text_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """For two images alone; prompts pass in chunks."""
    return build_copy(text_bundle, schedules=["zipar:4"], images=[2], filters=False, prefill_widths=[4, 16])


def prompts(path: Path) -> list[np.ndarray[Any, Any]]:
    """Of unequal lengths: the shortest there is, the longest, one twice, and another."""
    one, two, three = sample_features(open_bundle(path).model, 3, seed=3)
    longest = np.tile(three, (120, 1))[:120]
    return [one[:1], longest, two, two, one]


@pytest.mark.parametrize("settings", [{"guidance": 3.0}, {"guidance": 1.0, "top_k": 9}, {"greedy": True}], ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_tokens_are_those_of_onnxruntime_for_unequal_prompts(
    built: Path,
    text_runner: Runner,
    open_fake: Callable[..., Opened],
    schedule: str,
    settings: dict[str, Any],
) -> None:
    mine, engine, gpu = open_fake(built)
    features = prompts(built)
    expected = text_runner.generate(features=features, seeds=SEEDS, schedule=schedule, **settings).tokens
    assert len({tuple(row) for row in expected}) > 3
    for batch in (1, 2, 3, 32):  # 2 is filled up to 3, and so is what 32 leaves
        found = mine.generate(features=features, seeds=SEEDS, schedule=schedule, batch=batch, **settings).tokens
        np.testing.assert_array_equal(found, expected)
    assert engine.captured
    assert gpu.launches > 0


def test_a_batch_of_mixed_guidance(built: Path, text_runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, _, _ = open_fake(built)
    request: dict[str, Any] = {"features": prompts(built), "guidance": [1, 2.0, 7.5, 1, 3.0]}
    expected = text_runner.generate(**request).tokens
    for batch in (2, 3):
        np.testing.assert_array_equal(mine.generate(**request, batch=batch).tokens, expected)


def test_prompts_pass_in_chunks_at_the_smallest_batch(
    built_narrow: Path,
    text_runner: Runner,
    open_fake: Callable[..., Opened],
) -> None:
    mine, engine, _ = open_fake(built_narrow)
    assert engine.prefill_widths == (4, 16)
    assert {(p["images"], p["width"], p["condition"]) for p in engine.identity["profiles"]} == {
        *((2, width, 1) for width in engine.identity["widths"]),
        *((2, width, 119) for width in (4, 16)),
    }
    features = prompts(built_narrow)
    for guidance in (1.0, 2.5):
        request: dict[str, Any] = {"features": features, "schedule": "zipar:4", "guidance": guidance, "top_k": 0}
        expected = text_runner.generate(**request).tokens
        np.testing.assert_array_equal(mine.generate(**request).tokens, expected)
        np.testing.assert_array_equal(mine.generate(**request, batch=1).tokens, expected)


def test_the_caches_hold_what_onnxruntimes_do(
    built: Path,
    text_runner: Runner,
    open_fake: Callable[..., Opened],
) -> None:
    mine, engine, _ = open_fake(built)
    features = [prompts(built)[1], prompts(built)[4]]  # which fill up to three images
    for guidance in (2.0, 1.0):
        for one in (mine, text_runner):
            one.generate(features=features, schedule="ntp", guidance=guidance)
        other = text_runner._live_engine()
        for name in cache_names(mine.bundle.model.caches):
            found, wanted = engine.cache(name), other.cache(name)
            live = min(found.shape[2], wanted.shape[2])
            np.testing.assert_allclose(found[:, :, :live], wanted[:, :, :live], atol=1e-5)


def test_what_is_written_to_a_row_is_in_all_rows_that_repeat_it(
    built: Path,
    open_fake: Callable[..., Opened],
) -> None:
    _, engine, _ = open_fake(built)
    model, random = engine._bundle.model, np.random.default_rng(1)
    values = random.standard_normal((model.kv_heads, 5, model.head_size), np.float32)
    for images, rows in ((1, 1), (1, 2), (2, 2), (2, 4), (3, 6)):
        engine.prepare(images, rows, 20, 20)
        for name in cache_names(model.caches):
            for row in range(rows):
                engine.write_cache(name, row, 3, (values + row).transpose(0, 2, 1).copy().transpose(0, 2, 1))
            found = engine.cache(name)
            assert found.shape == (rows, model.kv_heads, 20, model.head_size)
            for row in range(rows):
                np.testing.assert_array_equal(found[row, :, 3:8], values + row)
            assert not found[:, :, :3].any()
            assert not found[:, :, 8:].any()


def test_a_prompt_that_is_longer_than_the_engine_was_built_for(
    built: Path,
    open_fake: Callable[..., Opened],
) -> None:
    _, engine, _ = open_fake(built)
    engine.prepare(1, 1, 65, 65, condition=119)
    with pytest.raises(EngineError, match=r"built for prompts of up to 120 tokens, this one has 131; rebuild it: `arf"):
        engine.prepare(1, 1, 65, 65, condition=130)
    with pytest.raises(EngineError, match=r"has 192 cache slots, the schedule and its prompts need 400"):
        engine.prepare(1, 2, 400, 0)


@pytest.mark.parametrize("change", [{"prefill_widths": []}, {"prefill_widths": [16]}, {"profiles": 3}], ids=str)
def test_an_identity_that_lies_about_passes_is_refused(
    built: Path, open_fake: Callable[..., Opened], change: dict[str, Any]
) -> None:
    mine, engine, gpu = open_fake(built)
    if "profiles" in change:  # those of steps alone
        change = {"profiles": engine.identity["profiles"][: change["profiles"]]}
    other = TensorRTEngine(mine.bundle, {**engine.identity, **change}, engine.library, gpu)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"not built for (steps|prompts)|built for prompts of up to 2 tokens"):
        Runner(mine.bundle, other).generate(features=prompts(built)[1:], schedule="ntp")


def test_filters_that_an_engine_lacks(built_narrow: Path, open_fake: Callable[..., Opened]) -> None:
    mine, _, _ = open_fake(built_narrow)
    request: dict[str, Any] = {"features": prompts(built_narrow)[2:], "schedule": "zipar:4"}
    with pytest.raises(EngineError, match=r"built without top-k and top-p; rebuild it \(with --filters\)"):
        mine.generate(**request, top_k=5)
    mine.generate(**request, top_k=0)


def test_each_shape_is_captured_once(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, _ = open_fake(built)
    mine.bundle = replace(mine.bundle, image_tokenizer=None)
    mine.generate(features=prompts(built), schedule="zipar:4", batch=3)
    programs = dict(engine._programs)
    mine.generate(features=prompts(built)[::-1], schedule="zipar:4", batch=3)
    assert engine._programs == programs
    assert {kind[3] for kind in programs} == {1, 119}
