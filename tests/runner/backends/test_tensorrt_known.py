"""Requests with known cells on engines of random order, however many there are: in place and only read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeContext, Opened
from made_once import made_once

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.tensorrt_identity import build_command
from arforge.runner.canvas import UNKNOWN, nothing_known

GRID, CELLS, WORDS = (4, 6), 24, 32
SCHEDULE = "arpg:5"


def known_cells(count: int, seed: int, grid: tuple[int, int] = GRID) -> np.ndarray:
    random = np.random.default_rng(seed)
    known = nothing_known(grid)
    places = random.permutation(grid[0] * grid[1])[:count]
    known.flat[places] = random.integers(0, WORDS, count)
    return known


@pytest.fixture(scope="session", params=["in-place", "read-only"])
def built(
    request: pytest.FixtureRequest,
    arpg_bundle: Path,
    build_copy: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    wishes = {"schedules": [SCHEDULE], "images": [2], "caches": request.param}
    return made_once(
        tmp_path_factory,
        f"known-{request.param}.bundle",
        lambda path: shutil.copytree(build_copy(arpg_bundle, **wishes), path),
    )


@pytest.fixture(scope="session")
def built_without(arpg_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    return build_copy(arpg_bundle, schedules=[SCHEDULE], known=False)


def test_any_number_of_known_cells_gives_the_cpus_tokens(
    built: Path, arpg_runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    runner, engine, gpu = open_fake(built)
    runner.generate([1, 2], schedule=SCHEDULE, guidance=2.0)  # captures some shapes
    for count in (1, 2, 5, 8, 11, 16, 20, 22, 23):
        known = known_cells(count, seed=count)
        request = {"classes": [3, 5], "schedule": SCHEDULE, "guidance": 2.0, "known": known}
        wanted = arpg_runner.generate(**request)
        found = runner.generate(**request)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        assert (found.tokens.reshape(2, *GRID)[:, known != UNKNOWN] == known[known != UNKNOWN]).all()
        before = gpu.launches
        np.testing.assert_array_equal(runner.generate(**request).tokens, wanted.tokens)
        calls = len(runner.plan(SCHEDULE, tuple(np.flatnonzero(known >= 0).tolist())).steps)
        by_itself = engine.identity["table"] is not None
        assert gpu.launches - before == (1 if by_itself else calls) + 1  # the image decoder's


def test_a_larger_grid_gives_the_cpus_tokens(
    built: Path, arpg_runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    runner, _, _ = open_fake(built)
    known = known_cells(17, seed=1, grid=(6, 9))
    request = {"classes": [3, 5], "schedule": SCHEDULE, "guidance": 2.0, "known": known}
    np.testing.assert_array_equal(runner.generate(**request).tokens, arpg_runner.generate(**request).tokens)


@pytest.mark.parametrize(
    ("count", "problem"), [(2, "was not built for steps of"), (23, "cache slots, the schedule needs")]
)
def test_an_engine_without_says_so_before_any_step(
    built_without: Path, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch, count: int, problem: str
) -> None:
    runner, _, gpu = open_fake(built_without)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda *_: pytest.fail("a step has run"))
    with pytest.raises(EngineError) as raised:
        runner.generate([1], schedule=SCHEDULE, known=known_cells(count, seed=2))
    told = str(raised.value)
    assert problem in told
    assert f"as {count} known cells need in {SCHEDULE}" in told
    assert re.search(r"; rebuild it: `arforge build \S+ --target tensorrt-rtx .*--schedule arpg:5", told)
    assert "--no-known" not in told  # the command that builds the right one
    assert gpu.launches == 0


def test_windows_that_need_known_cells_are_refused_before_the_first(
    built_without: Path, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _, _ = open_fake(built_without)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda *_: pytest.fail("a step has run"))
    with pytest.raises(EngineError, match="as 12 known cells need in arpg:5; rebuild it: "):
        runner.generate([1], schedule=SCHEDULE, known=nothing_known((6, 6)))


def test_a_schedule_that_it_was_not_built_for_is_named(built: Path, open_fake: Callable[..., Opened]) -> None:
    runner, _, _ = open_fake(built)
    for known, hint in ((None, "--schedule"), (known_cells(2, seed=3), "--schedule arpg:24")):
        problem = rf"not built for steps of 1 tokens .*rebuild it \(with {hint}\): "
        with pytest.raises(EngineError, match=problem):
            runner.generate([1], schedule="arpg:24", known=known)


def test_too_few_slots_are_told_before_any_step(
    built: Path, open_fake: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an engine of another arforge, whose slots do not fit known cells."""
    runner, engine, _ = open_fake(built)
    identity = dict(engine.identity) | {"slots": 20}
    monkeypatch.setattr(engine, "identity", identity)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda *_: pytest.fail("a step has run"))
    with pytest.raises(EngineError, match=r"it has 20 cache slots, the schedule needs 2\d, as 23 known cells need"):
        runner.generate([1], schedule=SCHEDULE, known=known_cells(23, seed=4))


def test_identities_tell_whether_known_cells_were_asked_for(built: Path, built_without: Path) -> None:
    for path, known in ((built, True), (built_without, False)):
        bundle = open_bundle(path)
        (engine,) = (one for one in bundle.engines if one.target == "tensorrt-rtx")
        identity = json.loads(bundle.path(engine.path).read_text())
        assert identity["options"].get("known", True) is known
        assert ("--no-known" in build_command(path, identity)) != known
