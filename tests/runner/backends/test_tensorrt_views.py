"""Engines that read their caches by views, on a GPU that is not there, beside engines of the plain lowering."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain_lowering
import pytest
from fake_gpu import RTX, FakeGpu, Opened
from fake_machine import library_of

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import ROWS_FIRST, SLOTS_FIRST
from arforge.runner.conditions import sample_features
from arforge.runner.step_graph import cache_names

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]
Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def build_views(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a float16 engine whose attention reads views into a copy of a bundle."""

    def built(bundle: Path, **wishes: Any) -> Path:
        path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("views") / bundle.name))
        tensorrt.build(BuildJob(path, RTX, "fp16", attention="view", **wishes))
        return path

    return built


@pytest.fixture(scope="session")
def built(grouped_bundle: Path, build_views: Callable[..., Path]) -> Path:
    """LlamaGen's with two heads of queries a head of keys, for one and three images."""
    return build_views(grouped_bundle, schedules=["ntp", "zipar:2"], widths=[1, 3], images=[1, 3], filters=False)


@pytest.fixture(scope="session")
def built_text(text_bundle: Path, build_views: Callable[..., Path]) -> Path:
    """For one and two images; prompts pass in chunks."""
    return build_views(
        text_bundle, schedules=["zipar:4"], widths=[1, 4], images=[1, 2], prefill_widths=[16], filters=False
    )


@pytest.fixture
def open_plain() -> Iterator[Callable[[Path], Runner]]:
    """Opens the float16 graph of a bundle on ONNX Runtime, with attention in the same plain products."""
    runners = []

    def opened(path: Path) -> Runner:
        runners.append(plain_lowering.open_plain(path))
        return runners[-1]

    yield opened
    for runner in runners:
        runner.close()


OpenPlain = Callable[[Path], Runner]


@pytest.mark.parametrize("settings", [{"guidance": 2.0, "temperature": 1.2}, {"guidance": 1.0}], ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:2"])
def test_tokens_are_those_of_the_plain_lowering(
    built: Path, open_fake: Open, open_plain: OpenPlain, schedule: str, settings: dict[str, Any]
) -> None:
    mine, engine, _ = open_fake(built, "fp16")
    expected = open_plain(built).generate(CLASSES, SEEDS, schedule, **settings).tokens
    assert len({tuple(row.flat) for row in expected}) >= 4
    for batch in (1, 2, 3, 32):  # 2 is filled up to 3, and so is what 32 leaves
        found = mine.generate(CLASSES, SEEDS, schedule, batch=batch, **settings)
        np.testing.assert_array_equal(found.tokens, expected)
    assert engine.captured


def test_a_cache_has_one_place_under_three_names_and_is_never_copied(built: Path, open_fake: Open) -> None:
    mine, engine, gpu = open_fake(built, "fp16")
    mine.generate(CLASSES[:3], SEEDS[:3], "zipar:2")
    model, slots = mine.bundle.model, engine.identity["slots"]
    names = cache_names(model.caches)
    for program in engine._programs.values():
        bound = program._context.addresses
        for name in names:
            assert bound[name] == bound[f"new_{name}"] == bound[f"view_{name}"] == engine._caches.addresses[name]
            assert f"view_{name}" not in program.inputs
    assert len(set(engine._caches.addresses.values())) == 2 * model.caches
    assert max(gpu.copied) < 6 * model.kv_heads * slots * model.head_size * 2


@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_caches_are_read_back_in_the_order_of_rows(
    built: Path, open_fake: Open, open_plain: OpenPlain, guidance: float
) -> None:
    (mine, engine, _), plain = open_fake(built, "fp16"), open_plain(built)
    for one in (mine, plain):
        one.generate([4, 2], [1, 2], "ntp", guidance=guidance)
    live = mine.plan("ntp").slots - 1
    for name in cache_names(mine.bundle.model.caches):
        found, wanted = (one.cache(name)[:, :, :live] for one in (engine, plain._live_engine()))
        assert found.shape[0] == (4 if guidance > 1 else 2)
        assert np.abs(wanted).max() > 1
        np.testing.assert_allclose(found, wanted, atol=1e-2)  # ONNX Runtime fuses the two graphs in other places


def test_slots_are_cleared_and_written_for_the_rows_that_run(built: Path, open_fake: Open) -> None:
    _, engine, gpu = open_fake(built, "fp16")
    random = np.random.default_rng(0)
    model = engine._bundle.model
    for images in (3, 1):  # which lie otherwise in memory
        rows = 2 * images
        engine.prepare(images, rows, 10, 10)
        values = random.standard_normal((rows, model.kv_heads, 4, model.head_size)).astype(np.float16)
        for row in range(rows):
            engine.write_cache("value_cache_1", row, 3, values[row])
        found = engine.cache("value_cache_1")
        np.testing.assert_array_equal(found[:, :, 3:7], values)
        assert not found[:, :, :3].any()
        assert not found[:, :, 7:].any()
        assert not engine.cache("key_cache_1").any()
        engine.prepare(images, rows, 10, 5)
        gpu.synchronize()
        np.testing.assert_array_equal(engine.cache("value_cache_1")[:, :, 5:7], values[:, :, 2:])
        assert not engine.cache("value_cache_1")[:, :, :5].any()


def test_rows_that_write_to_different_slots_are_refused(built_text: Path, open_fake: Open) -> None:
    _, engine, _ = open_fake(built_text, "fp16")
    assert engine.one_mask  # so that images at paces of their own are decoded one by one
    engine.prepare(2, 4, 10, 0)
    buffers = engine.buffers(1)
    buffers.mask[..., :3] = True
    buffers.mask[3, ..., 2] = False  # which rows with prompts may
    engine.run(1)
    buffers.write_index[2] = 1
    with pytest.raises(EngineError, match="rows of a step write to different slots, and tensorrt-rtx .* slots first"):
        engine.run(1)


def test_prompts_of_unequal_lengths(built_text: Path, open_fake: Open, open_plain: OpenPlain) -> None:
    (mine, _, _), plain = open_fake(built_text, "fp16"), open_plain(built_text)
    one, two, three = sample_features(open_bundle(built_text).model, 3, seed=3)
    request: dict[str, Any] = {
        "features": [one[:1], np.tile(three, (120, 1))[:120], two, two, one],
        "seeds": SEEDS,
        "top_k": 0,
    }
    expected = plain.generate(**request, schedule="zipar:4", guidance=3.0).tokens
    assert len({tuple(row.flat) for row in expected}) >= 4
    for batch in (1, 2):
        found = mine.generate(**request, schedule="zipar:4", guidance=3.0, batch=batch).tokens
        np.testing.assert_array_equal(found, expected)


def test_random_order_with_layers_that_share_a_cache(
    arpg_bundle: Path, build_views: Callable[..., Path], open_fake: Open, open_plain: OpenPlain
) -> None:
    built = build_views(arpg_bundle, schedules=["arpg:3"], images=[2])
    (mine, engine, _), plain = open_fake(built, "fp16"), open_plain(built)
    assert engine.identity["attention"]["lowering"] == "view"
    expected = plain.generate([0, 9, 5], schedule="arpg:3", guidance=4.0).tokens
    np.testing.assert_array_equal(mine.generate([0, 9, 5], schedule="arpg:3", guidance=4.0).tokens, expected)


def test_one_image_runs_ahead_on_drafts(
    grouped_bundle: Path, build_views: Callable[..., Path], open_fake: Open, open_plain: OpenPlain
) -> None:
    """With one mask, since the rows of an image are at one place; calls follow one another on the device as ever."""
    built = build_views(grouped_bundle, schedules=["ntp", "jacobi:6"])
    (mine, engine, gpu), plain = open_fake(built, "fp16"), open_plain(built)
    assert engine.one_mask
    assert not engine.own_mask
    for schedule in ("ntp", "jacobi:6"):
        expected = plain.generate(CLASSES, SEEDS, schedule, guidance=2.0)
        before = gpu.launches
        found = mine.generate(CLASSES, SEEDS, schedule, guidance=2.0)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert gpu.launches - before < found.passes.sum() / 4


def test_an_order_that_is_not_known_is_refused(built: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(built, tmp_path / "other.bundle"))
    opened = open_bundle(path)
    stored = opened.path(next(engine.path for engine in opened.engines if engine.target == RTX))
    stored.write_text(stored.read_text().replace("slots rows heads size", "slots heads rows size"))
    with pytest.raises(EngineError, match="cache_order"):
        open_bundle(path).identities(RTX, "fp16")


@pytest.mark.parametrize("views", [True, False])
def test_an_order_that_is_not_the_engines_is_told_by_its_shapes(
    built: Path, grouped_bundle: Path, tmp_path: Path, views: bool
) -> None:
    """Caches with slots first of an engine that has rows first, and the other way round."""
    path = Path(shutil.copytree(built if views else grouped_bundle, tmp_path / "other.bundle"))
    if not views:
        tensorrt.build(BuildJob(path, RTX, "fp16", schedules=["zipar:2"], widths=[1, 3]))
    bundle, gpu = open_bundle(path), FakeGpu()
    identity = bundle.engine(RTX, "fp16")
    library = library_of(bundle, identity, gpu)
    wrong = {**identity, "cache_order": ROWS_FIRST if views else SLOTS_FIRST}
    shape = r"2, 2, \d+, 16" if views else r"1, 1, \d+, \d+"
    problem = rf"its key_cache_0 is not float16 \[{shape}\]"
    engine = TensorRTEngine(bundle, wrong, library, gpu)  # type: ignore[arg-type]
    engine.prepare(images=1, rows=2, slots=24, zero_slots=0)
    with pytest.raises(EngineError, match=f"{problem}; rebuild it: `arforge build {path} --target tensorrt-rtx "):
        engine.buffers(1)
    engine.close()
