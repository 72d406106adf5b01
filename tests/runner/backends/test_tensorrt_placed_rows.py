"""Engines that only read their caches: what a step gives is put in place behind it, in few copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeContext, FakeEngine, FakeGpu, Opened, fake_library

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_placed_rows import PlacedRows, Planes, runs
from arforge.runner.conditions import sample_features
from arforge.runner.step_graph import cache_names, update_name

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]


@pytest.fixture(scope="session")
def built(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """LlamaGen's for one and three images."""
    return build_copy(bundle, caches="read-only", schedules=["ntp", "zipar:4"], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built_jacobi(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """Whose images run ahead on drafts, each at a place of its own."""
    return build_copy(bundle, caches="read-only", schedules=["ntp", "jacobi:6"], images=[3])


@pytest.mark.parametrize("lines", [1, 2, 3, 30, 256])
@pytest.mark.parametrize("line", [16, 48, 80, 256, 1024, 100])
def test_planes_begin_where_tensorrt_takes_them(line: int, lines: int) -> None:
    planes = Planes.of(line, lines)
    assert planes.size % 256 == 0
    assert lines <= planes.lines < lines + 256


def test_rows_that_follow_each_other_and_write_to_one_place_go_together() -> None:
    assert runs(np.array([4])) == [(0, 1)]
    assert runs(np.array([4, 4, 4, 4])) == [(0, 4)]
    assert runs(np.array([4, 5, 5, 4])) == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize("slot_bytes", [4, 32, 20])
@pytest.mark.parametrize("write_index", [[3, 3, 3, 3], [0, 7, 7, 2], [5, 4, 3, 2]])
def test_each_row_and_head_lands_where_it_belongs(slot_bytes: int, write_index: list[int]) -> None:
    """Two caches for four rows of three heads and ten slots; steps of one width and another, of all rows and of two."""
    gpu, random = FakeGpu(), np.random.default_rng(0)
    caches, heads, slots, width = 2, 3, 10, 3
    placed = PlacedRows(gpu, caches, heads, slots, slot_bytes, [(4, 1), (4, width), (2, width)])
    assert all(address % 256 == 0 for address in placed.addresses.values())
    for rows in (4, 2):
        bound = placed.bound(rows, width)
        assert set(bound) == {*cache_names(caches), *map(update_name, cache_names(caches))}
        assert all(address % 256 == 0 for address in bound.values())
        expected, updates = {}, {}
        for name in cache_names(caches):
            expected[name] = random.integers(0, 256, (4, heads, slots, slot_bytes), np.uint8)
            updates[name] = random.integers(0, 256, (rows, heads, width, slot_bytes), np.uint8)
            gpu.upload(bound[name], expected[name])
            gpu.upload(bound[update_name(name)], updates[name])
            gpu.synchronize()
            for row, first in enumerate(write_index[:rows]):
                expected[name][row, :, first : first + width] = updates[name][row]
        gpu.copied.clear()
        placed.put(width, np.array(write_index[:rows]))
        gpu.synchronize()
        assert len(gpu.copied) == len(runs(np.array(write_index[:rows])))
        assert sum(gpu.copied) == 2 * caches * rows * heads * width * slot_bytes
        for name, wanted in expected.items():
            found = np.empty_like(wanted)
            gpu.download(found, bound[name])
            gpu.synchronize()
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("settings", [{"guidance": 2.0}, {"guidance": 1.5, "top_k": 9}, {"guidance": 1.0}], ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_tokens_are_those_of_onnxruntime(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str, settings: dict[str, Any]
) -> None:
    mine, engine, gpu = open_fake(built)
    expected = runner.generate(CLASSES, SEEDS, schedule, **settings).tokens
    for batch in (1, 2, 3):  # 2 is filled up to 3
        found = mine.generate(CLASSES, SEEDS, schedule, batch=batch, **settings).tokens
        np.testing.assert_array_equal(found, expected)
    assert engine.captured
    assert gpu.launches > 0


@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_images_at_places_of_their_own(
    built_jacobi: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str
) -> None:
    mine, engine, gpu = open_fake(built_jacobi)
    assert engine.own_mask
    expected = runner.generate(CLASSES, SEEDS, schedule, guidance=2.0)
    found = mine.generate(CLASSES, SEEDS, schedule, batch=3, guidance=2.0)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    boxes = [size for size in gpu.copied if size % 256 == 0]
    assert len(set(boxes)) > (1 if schedule == "jacobi:6" else 0)  # rows of one image, and of several together


def test_regions_and_random_order(
    par_bundle: Path,
    arpg_bundle: Path,
    par_runner: Runner,
    arpg_runner: Runner,
    build_copy: Callable[..., Path],
    open_fake: Callable[..., Opened],
) -> None:
    """Steps of several cells, layers that share a cache, and cells that are asked for apart from the tokens fed."""
    for bundle, runner, schedules in ((par_bundle, par_runner, []), (arpg_bundle, arpg_runner, ["arpg:3"])):
        mine, engine, _ = open_fake(build_copy(bundle, caches="read-only", schedules=schedules, images=[2]))
        asked: dict[str, Any] = {"classes": CLASSES[:3], "seeds": SEEDS[:3], "guidance": 2.0}
        asked |= {"schedule": schedules[0]} if schedules else {}
        np.testing.assert_array_equal(mine.generate(**asked).tokens, runner.generate(**asked).tokens)
        assert engine.captured


def test_prompts_of_unequal_lengths(
    text_bundle: Path, text_runner: Runner, build_copy: Callable[..., Path], open_fake: Callable[..., Opened]
) -> None:
    """Their passes write to the caches as steps do; then rows have them that the host puts there."""
    path = build_copy(text_bundle, caches="read-only", schedules=["zipar:4"], images=[1, 2], prefill_widths=[16])
    mine, _, _ = open_fake(path)
    one, two, three = sample_features(open_bundle(path).model, 3, seed=3)
    features = [one[:1], np.tile(three, (120, 1))[:120], two]
    asked: dict[str, Any] = {"features": features, "seeds": SEEDS[:3], "schedule": "zipar:4", "guidance": 3.0}
    expected = text_runner.generate(**asked).tokens
    for batch in (1, 2):
        np.testing.assert_array_equal(mine.generate(**asked, batch=batch).tokens, expected)


def test_a_step_is_one_launch_one_copy_and_one_wait(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, _, gpu = open_fake(built)
    mine.generate([3], [9], "ntp")  # captured now
    before = gpu.launches, gpu.waits
    gpu.copied.clear()
    steps = mine.generate([3], [9], "ntp").steps
    assert (gpu.launches - before[0], gpu.waits - before[1]) == (steps + 1, steps + 1)  # the decoder
    model = open_bundle(built).model
    rows = 2 * model.caches * 2 * model.kv_heads * model.head_size * 4  # keys and values, rows, float32
    assert gpu.copied == [rows] * steps


def test_the_identity_says_why_and_there_is_no_loop(built: Path) -> None:
    identity = open_bundle(built).engine("tensorrt-rtx", "fp32")
    assert identity["caches"] == {"lowering": "read-only", "reason": "as asked"}
    assert identity["loop"] is None
    assert identity["loop_reason"] == "the host puts the keys and values of each step into the caches"


def test_rows_of_one_mask_that_write_to_different_slots_are_refused(
    built: Path, open_fake: Callable[..., Opened]
) -> None:
    _, engine, _ = open_fake(built)
    engine.prepare(1, 2, 80, 0)
    engine.settings.temperature[:] = 1
    buffers = engine.buffers(1)
    buffers.write_index[:] = [4, 5]
    with pytest.raises(EngineError, match=r"rows with one mask write to slots \[4, 5\], expected the same"):
        engine.run(1)


def test_nothing_is_asked_of_the_library_that_tensorrt_10_3_lacks(
    built: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engines tell no aliases, its contexts not whether they can be captured, and it has no runtime cache."""
    for kind, name in (
        (FakeEngine, "get_aliased_input_tensor"),
        (FakeEngine, "create_runtime_config"),
        (FakeContext, "is_stream_capturable"),
    ):
        monkeypatch.delattr(kind, name)
    opened, gpu = open_bundle(built), FakeGpu()
    identity = opened.engine("tensorrt-rtx", "fp32") | {"target": "tensorrt", "library": "tensorrt 10.3.0"}
    library = fake_library(gpu, "10.3.0", "tensorrt")
    library.trt.add(opened, identity)
    with Runner(opened, TensorRTEngine(opened, identity, library, gpu)) as mine:  # type: ignore[arg-type]
        found = mine.generate(CLASSES, SEEDS, "zipar:4").tokens
    np.testing.assert_array_equal(found, runner.generate(CLASSES, SEEDS, "zipar:4").tokens)
