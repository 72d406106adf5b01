"""Static schedules without the host between steps: the tokens are the host's, in few launches, waits and bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_gpu import FakeGpu, Opened
from own_paces import asked

from arforge.cli import main
from arforge.runner import Cancelled, EngineError, RequestError, Runner
from arforge.runner.backends import tensorrt_table
from arforge.runner.errors import NumericsError
from arforge.runner.preview import Partial

SCHEDULES = {
    "classes": ["ntp", "zipar:4", "zipar:2,holes=masked"],
    "noise": ["ntp", "zipar:4"],
    "par": ["par:4"],
    "arpg": ["arpg:5", "arpg:3"],
    "features": ["ntp", "zipar:4"],
    "ids": ["ntp", "zipar:4"],
}
BUNDLES = {"classes": "bundle", "features": "text_bundle"}
RUNNERS = {"classes": "runner", "features": "text_runner"}
CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]


@pytest.fixture(scope="session", params=SCHEDULES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def built_family(request: pytest.FixtureRequest, family: str, build_copy: Callable[..., Path]) -> Path:
    """An engine of one family's schedules, for one image and three."""
    bundle = request.getfixturevalue(BUNDLES.get(family, f"{family}_bundle"))
    return build_copy(bundle, schedules=SCHEDULES[family], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    return build_copy(bundle, schedules=["ntp", "zipar:4"], images=[1, 3])


@pytest.fixture(scope="session")
def built_inpainting(arpg_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """Of one width, so that kept cells pass in steps that it has, and with slots for many steps."""
    return build_copy(arpg_bundle, schedules=["arpg:5", "arpg:24"], images=[2], widths=[9])


@dataclass
class Counts:
    launches: int
    waits: int
    moved: int  # bytes
    allocations: int


def counted(gpu: FakeGpu, work: Callable[[], Any]) -> tuple[Any, Counts]:
    before = gpu.launches, gpu.waits, gpu.moved, gpu.allocations
    result = work()
    after = gpu.launches, gpu.waits, gpu.moved, gpu.allocations
    return result, Counts(*(now - then for now, then in zip(after, before, strict=True)))


def tokens_alone(opened: Opened) -> Runner:
    """The runner without its image decoder, whose launches and copies would count."""
    opened[0].bundle = replace(opened[0].bundle, image_tokenizer=None)
    return opened[0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tokens_are_the_cpu_engines(
    request: pytest.FixtureRequest, built_family: Path, family: str, open_fake: Callable[..., Opened], count: int
) -> None:
    """Batches that there are programs for, smaller ones and remainders; images of guidance, prompts of their own."""
    whole = request.getfixturevalue(RUNNERS.get(family, f"{family}_runner"))
    mine, engine, gpu = open_fake(built_family, look_every={1: 8, 2: 3, 3: 0, 5: 1}[count])
    wishes = asked(family if family in ("features", "ids") else "classes")
    wishes = {name: value[:count] if isinstance(value, list) else value for name, value in wishes.items()}
    for schedule in SCHEDULES[family]:
        expected = whole.generate(**wishes, schedule=schedule)
        found = mine.generate(**wishes, schedule=schedule, images=False)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
    assert engine._tables._made
    assert engine.captured
    assert not gpu.queued


@pytest.mark.parametrize("look_every", [1, 5, 8, 100, 0])
def test_launches_waits_and_allocations_of_an_image(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], look_every: int
) -> None:
    opened = open_fake(built, look_every=look_every)
    mine, engine, gpu = tokens_alone(opened), opened[1], opened[2]
    for schedule in ("ntp", "zipar:4"):
        expected = runner.generate([7], [5], schedule, guidance=2.0)
        calls = int(expected.passes[0])
        mine.generate([0], schedule=schedule)  # which is captured meanwhile
        found, counts = counted(gpu, lambda schedule=schedule: mine.generate([7], [5], schedule, guidance=2.0))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        looks = -(-calls // (look_every or calls))
        assert (counts.launches, counts.waits, counts.allocations) == (looks, looks, 0)
    assert engine.captured


def test_longer_images_are_several_launches_and_one_wait(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_table, "LONGEST", 24)
    opened = open_fake(built, look_every=0)
    mine = tokens_alone(opened)
    mine.generate([0], schedule="ntp")
    found, counts = counted(opened[2], lambda: mine.generate([7], [5], "ntp"))
    np.testing.assert_array_equal(found.tokens, runner.generate([7], [5], "ntp").tokens)
    assert (counts.launches, counts.waits) == (3, 1)


def test_tables_go_up_when_another_plan_comes(built: Path, runner: Runner, open_fake: Callable[..., Opened]) -> None:
    opened = open_fake(built)
    mine, gpu = tokens_alone(opened), opened[2]
    moved = []
    for schedule in ("ntp", "ntp", "zipar:4", "ntp", "ntp"):
        found, counts = counted(gpu, lambda schedule=schedule: mine.generate([7], [5], schedule))
        np.testing.assert_array_equal(found.tokens, runner.generate([7], [5], schedule).tokens)
        moved.append(counts.moved)
    tables = len(opened[1]._tables._made[1]._tables._host)
    assert moved[0] == moved[3] == moved[1] + tables
    assert moved[4] == moved[1] < tables


def test_kept_cells_are_fed_by_tables_too(
    built_inpainting: Path, arpg_runner: Runner, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_table, "KEPT", 2)
    mine, engine, gpu = open_fake(built_inpainting)
    random = np.random.default_rng(2)
    for share in (0.2, 0.5, 0.9):
        known = np.where(random.random((3, 4, 6)) < share, random.integers(0, 32, (3, 4, 6)), -1)
        known[:, known[0] < 0] = -1
        known[:, 0, 0] = -1
        known = np.where(known[:1] < 0, -1, np.maximum(known, 0))
        wishes = {"classes": [1, 2, 3], "schedule": "arpg:5", "known": known, "guidance": 2.0}
        found, expected = mine.generate(**wishes, images=False), arpg_runner.generate(**wishes, images=False)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    table = engine._tables._made[2]
    assert table.done
    assert len(table._launches) <= 2
    steps = sum(program.captured is not None for program in engine._programs.values())
    assert gpu.graphs <= 2 + steps


def test_a_plan_that_has_no_room_is_the_hosts(
    bundle: Path, build_copy: Callable[..., Path], runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    """Next-token decoding has more calls than the schedule that the engine was built for."""
    mine, engine, _ = open_fake(build_copy(bundle, schedules=["zipar:4"], images=[2]))
    assert engine.identity["table_sizes"]["calls"] < 64
    for schedule, tables in (("ntp", 0), ("zipar:4", 1)):
        expected = runner.generate(CLASSES, SEEDS, schedule)
        np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, schedule).tokens, expected.tokens)
        assert len(engine._tables._made) == tables


@pytest.mark.parametrize("look_every", [8, 5, 0])
def test_progress_previews_and_cancel_come_at_looks(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], look_every: int
) -> None:
    mine, _, _ = open_fake(built, look_every=look_every)
    expected = runner.generate([1], [4], "ntp").tokens
    told: list[tuple[int, int]] = []
    shown: list[Any] = []

    def show(partial: Partial) -> None:
        shown.append((partial.done, partial.tokens()))

    mine.generate([1], [4], "ntp", progress=lambda *now: told.append(now), preview=show)
    looks = [min(done, 64) for done in range(look_every or 64, 64 + (look_every or 64), look_every or 64)]
    assert told == [(done, 64) for done in looks]
    for (done, tokens), look in zip(shown, looks, strict=True):
        assert done == look
        np.testing.assert_array_equal(tokens[:, :done], expected[:, :done])
        assert (tokens[:, done:] == -1).all()
    flag = threading.Event()
    if look_every:
        with pytest.raises(Cancelled, match=f"cancelled after {look_every} of 64 steps"):
            mine.generate([1], schedule="ntp", cancel=flag, progress=lambda *_: flag.set())
    np.testing.assert_array_equal(mine.generate([1], [4], "ntp").tokens, expected)


@pytest.mark.parametrize("look_every", [1, 8, 16])
@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_numbers_that_are_none_stop_it_with_the_hosts_message(
    built: Path, open_fake: Callable[..., Opened], schedule: str, look_every: int
) -> None:
    mine, engine, _ = open_fake(built, look_every=look_every)
    steps = mine.plan(schedule).steps
    expected = mine.generate(CLASSES, SEEDS, schedule).tokens
    spoilt = []

    def spoil(done: int, _: int) -> None:
        if done == 16:
            spoilt.append(done)
            model = engine._bundle.model
            values = np.full((model.kv_heads, 1, model.head_size), np.nan, np.float32)
            engine.write_cache("value_cache_0", 1, steps[0].write_index, values)

    with pytest.raises(NumericsError) as caught:
        mine.generate(CLASSES[:3], SEEDS[:3], schedule, progress=spoil)
    assert spoilt
    assert str(caught.value).startswith(
        f"step 16 of {len(steps)}, image 1: the logits are non-finite, first seen in the values of layer 0; check"
    )
    np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, schedule).tokens, expected)


def test_an_engine_that_fails_between_two_calls_is_quoted_and_the_next_request_is_sound(
    built: Path, runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, _ = open_fake(built)
    expected = runner.generate(CLASSES, SEEDS, "zipar:4")
    mine.generate([1], schedule="ntp")
    between = next(one for one in engine._tables._loaded.library.trt.engines if "drawn" in one.inputs)  # type: ignore[union-attr]
    between.failure = "out of registers"
    with pytest.raises(EngineError, match=r"failed in .*table-.*\.engine: out of registers"):
        mine.generate([1], schedule="zipar:4")
    between.failure = ""
    np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "zipar:4").tokens, expected.tokens)


def test_without_capture_it_runs_all_the_same(built: Path, runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, engine, gpu = open_fake(built, capturable=False)
    expected = runner.generate(CLASSES, SEEDS, "zipar:4").tokens
    for _ in range(2):
        np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "zipar:4").tokens, expected)
    assert not engine.captured
    assert gpu.launches == 0


def test_an_identity_that_says_other_sizes_is_refused(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, _ = open_fake(built)
    more = {**engine.identity["table_sizes"], "columns": 70}
    engine._tables._identity = {**engine.identity, "table_sizes": more}
    with pytest.raises(EngineError, match=r"does not take known as \[2, 70\]: build the engine again"):
        mine.generate([1], schedule="ntp")


def test_looks_are_for_tensorrt_and_whole_numbers(built: Path, bundle: Path, open_fake: Callable[..., Opened]) -> None:
    with pytest.raises(RequestError, match="look-every is for TensorRT: with onnxruntime the host makes each call"):
        Runner.open(bundle, look_every=8)
    refused = CliRunner().invoke(main, ["run", str(bundle), "--class", "1", "--tokens", "-", "--look-every", "8"])
    assert "look-every is for TensorRT" in refused.output
    for wrong in (-1, 1.5, True):
        with pytest.raises(RequestError, match="look-every"):
            open_fake(built, look_every=wrong)
