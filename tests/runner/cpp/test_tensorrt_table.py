"""Static schedules in C++ without the host between steps: the host's tokens, in few launches, waits and bytes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_abi import STATUS, Failure, Partial
from cpp_abi import Runner as CppRunner
from fake_gpu import RTX
from launch_counts import BUNDLES, COUNTS
from stand_in_bundle import copied, spoil_token
from tensorrt_pairs import StandIn, StandIns, counted

from arforge.runner import Runner, open_bundle

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]
PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0}


@pytest.mark.parametrize("schedule", COUNTS)
def test_an_image_takes_as_many_launches_waits_and_bytes_as_pythons(
    stand_in: StandIn, stand_ins: StandIns, request: pytest.FixtureRequest, tmp_path: Path, schedule: str
) -> None:
    """Without the image decoder's."""
    cpu: Runner = request.getfixturevalue(BUNDLES[schedule].replace("bundle", "runner"))
    expected = cpu.generate([7], [5], schedule, guidance=2.0, **PLAIN).tokens
    opened = [(stand_ins(f"counts {schedule}"), looks) for looks in (8, 0)]
    if schedule == "ntp":
        opened.insert(0, (stand_ins("counts ntp by the host"), 8))
    counts = []
    for index, (source, look_every) in enumerate(opened):
        ours = stand_in.open(copied(source, tmp_path / f"{index}.bundle", decoder=None), look_every=look_every)
        ours.generate([1], [3], schedule, guidance=2.0, **PLAIN)  # which is captured meanwhile
        found, count = counted(stand_in, lambda ours=ours: ours.generate([7], [5], schedule, guidance=2.0, **PLAIN))
        np.testing.assert_array_equal(found.tokens, expected)
        counts.append(count)
        ours.close()
    assert counts == [(*count, 0) for count in COUNTS[schedule][-len(counts) :]]


@pytest.mark.parametrize("look_every", [1, 5, 100])
def test_looks_are_as_many_as_asked_for(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path, look_every: int
) -> None:
    path = copied(stand_ins("classes"), tmp_path / "its.bundle", decoder=None)
    ours = stand_in.open(path, look_every=look_every)
    for schedule in ("ntp", "zipar:2"):
        expected = runner.generate([7, 2], [5, 6], schedule, guidance=2.0)
        ours.generate([0, 0], schedule=schedule)
        found, (launches, waits, _, _, allocations) = counted(
            stand_in, lambda schedule=schedule: ours.generate([7, 2], [5, 6], schedule, guidance=2.0)
        )
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        looks = -(-int(expected.passes[0]) // look_every)
        assert (launches, waits, allocations) == (looks, looks, 0)
    ours.close()


def test_tables_go_up_when_another_plan_comes(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path
) -> None:
    ours, sent = stand_in.open(copied(stand_ins("classes"), tmp_path / "its.bundle", decoder=None)), []
    for schedule in ("ntp", "ntp", "zipar:2", "ntp", "ntp"):
        found, count = counted(stand_in, lambda schedule=schedule: ours.generate([7], [5], schedule))
        np.testing.assert_array_equal(found.tokens, runner.generate([7], [5], schedule).tokens)
        sent.append(count[2])
    assert sent[0] == sent[3] > 2 * sent[1]
    assert sent[4] == sent[1]
    ours.close()


def test_kept_cells_are_fed_by_tables_too(
    stand_in: StandIn, stand_ins: StandIns, arpg_runner: Runner, tmp_path: Path
) -> None:
    """Each of these plans is another, whose graphs do not pile up: of many the oldest go."""
    ours = stand_in.open(copied(stand_ins("inpainting"), tmp_path / "its.bundle", decoder=None), look_every=2)
    random = np.random.default_rng(2)
    for share in (0.2, 0.5, 0.9):
        decide = random.random((4, 6)) >= share
        decide[0, 0] = True
        known = np.where(decide, -1, random.integers(0, 32, (3, 4, 6)))
        asked = {"classes": [1, 2, 3], "schedule": "arpg:5", "known": known, "guidance": 2.0, **PLAIN}
        expected = arpg_runner.generate(**asked, images=False)
        ours.generate(**asked)  # which is captured meanwhile
        found, (launches, waits, *_) = counted(stand_in, lambda asked=asked: ours.generate(**asked))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        assert launches == waits == 2 * -(-int(found.passes[0]) // 2)  # of two batches
    ours.close()


def test_a_larger_canvas_is_decoded_by_tables(
    stand_in: StandIn, stand_ins: StandIns, arpg_runner: Runner, tmp_path: Path
) -> None:
    """Cells of its windows are drawn with the canvas's numbers."""
    ours = stand_in.open(copied(stand_ins("inpainting"), tmp_path / "its.bundle", decoder=None), look_every=0)
    asked: dict[str, Any] = {"classes": [1, 2], "schedule": "arpg:5", "known": np.full((6, 8), -1), **PLAIN}
    expected = arpg_runner.generate(**asked, images=False)
    ours.generate(**asked)  # which is captured meanwhile
    found, (launches, waits, *_) = counted(stand_in, lambda: ours.generate(**asked))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert launches == waits == 4 < int(found.passes[0])
    ours.close()


def test_a_plan_that_has_no_room_is_the_hosts(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path
) -> None:
    """Next-token decoding has more calls than the schedule that the engine was built for."""
    path = copied(stand_ins("zipar"), tmp_path / "its.bundle", decoder=None)
    assert open_bundle(path).engine(RTX, "fp32")["table_sizes"]["calls"] < 64
    ours = stand_in.open(path, look_every=0)
    for schedule, looks in (("ntp", 64), ("zipar:4", 1)):
        ours.generate([0], schedule=schedule, **PLAIN)
        expected = runner.generate([7], [5], schedule, **PLAIN).tokens
        found, (launches, *_) = counted(stand_in, lambda schedule=schedule: ours.generate([7], [5], schedule, **PLAIN))
        np.testing.assert_array_equal(found.tokens, expected)
        assert launches == looks
    ours.close()


@pytest.mark.parametrize("look_every", [8, 5, 0])
def test_progress_previews_and_cancel_come_at_looks(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, look_every: int
) -> None:
    ours = stand_in.open(stand_ins("classes"), look_every=look_every)
    expected = runner.generate([1], [4], "ntp").tokens
    told: list[tuple[int, int]] = []
    shown: list[Any] = []

    def show(partial: Partial) -> None:
        shown.append((partial.facts.done, partial.tokens().reshape(1, -1)))

    ours.generate([1], [4], "ntp", progress=lambda *now: told.append(now), preview=show)
    looks = [min(done, 64) for done in range(look_every or 64, 64 + (look_every or 64), look_every or 64)]
    assert told == [(done, 64) for done in looks]
    for (done, tokens), look in zip(shown, looks, strict=True):
        assert done == look
        np.testing.assert_array_equal(tokens[:, :done], expected.reshape(1, -1)[:, :done])
        assert (tokens[:, done:] == -1).all()
    if look_every:
        with pytest.raises(Failure, match=f"cancelled after {look_every} of 64 steps") as cancelled:
            ours.generate([1], schedule="ntp", progress=lambda *_: True)
        assert cancelled.value.status == STATUS["cancelled"]
    np.testing.assert_array_equal(ours.generate([1], [4], "ntp").tokens, expected)
    ours.close()


@pytest.mark.parametrize("look_every", [1, 8, 0])
def test_numbers_that_are_none_are_told_with_their_step_and_image(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path, look_every: int
) -> None:
    """Of the first cell that they spoil, whenever the host looks."""
    tokens = runner.generate(CLASSES[:3], SEEDS[:3], "ntp").tokens.reshape(3, 64)
    firsts = {int(token): int((tokens == token).any(0).argmax()) for token in np.unique(tokens[:, :60])}
    token, cell = max(firsts.items(), key=lambda one: one[1])
    image = int((tokens[:, cell] == token).argmax())
    assert 8 < cell < 63
    ours = stand_in.open(spoil_token(stand_ins("classes"), tmp_path / "spoilt.bundle", token), look_every=look_every)
    for _ in range(2):
        with pytest.raises(Failure, match=rf"^step {cell + 1} of 64, image {image}: the logits are non-") as refused:
            ours.generate(CLASSES[:3], SEEDS[:3], "ntp")
        assert refused.value.status == STATUS["numerics"]
    ours.close()


def test_an_engine_that_fails_between_two_calls_is_quoted_and_the_next_request_is_sound(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = stand_in.open(stand_ins("classes"))
    expected = runner.generate(CLASSES, SEEDS, "zipar:2").tokens
    ours.generate([1], schedule="ntp")
    monkeypatch.setenv("STAND_IN_FAILURE", "out of registers")
    with pytest.raises(Failure, match=r"failed in .*table-.*\.engine: out of registers") as failure:
        ours.generate([1], schedule="zipar:2")
    assert failure.value.status == STATUS["engine"]
    monkeypatch.delenv("STAND_IN_FAILURE")
    np.testing.assert_array_equal(ours.generate(CLASSES, SEEDS, "zipar:2").tokens, expected)
    ours.close()


def test_an_identity_that_says_other_sizes_is_refused(stand_in: StandIn, stand_ins: StandIns, tmp_path: Path) -> None:
    sizes = open_bundle(stand_ins("classes")).engine(RTX, "fp32")["table_sizes"]
    path = copied(stand_ins("classes"), tmp_path / "its.bundle", table_sizes={**sizes, "columns": 70})
    ours = stand_in.open(path)
    with pytest.raises(Failure, match=r"does not take known as int64 \[2, 70\]: build the engine again"):
        ours.generate([1], schedule="ntp")
    ours.close()


@pytest.mark.parametrize("key", ["table", "table_graph"])
def test_an_identity_that_names_a_file_outside_is_refused(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path, key: str
) -> None:
    path = copied(stand_ins("classes"), tmp_path / "its.bundle", **{key: "../step.engine"})
    assert f"{key} '../step.engine' is not listed among the bundle's files" in stand_in.refused(path)


def test_looks_are_for_tensorrt_and_whole_numbers(
    stand_in: StandIn, stand_ins: StandIns, bundle: Path, tmp_path: Path
) -> None:
    expected = "look-every is for TensorRT: with onnxruntime the host makes each call, so leave it out"
    with pytest.raises(Failure, match=expected) as refused:
        CppRunner(stand_in.library, bundle, threads=1, look_every=8)
    assert refused.value.status == STATUS["request"]
    for wrong in (-2, 2**30 + 1):
        with pytest.raises(Failure, match=rf"look-every is {wrong}, expected a whole number of 0 to 1073741824"):
            stand_in.open(stand_ins("classes"), look_every=wrong)
    command = [stand_in.build.program("arforge-run"), bundle, "--class", "1", "--tokens", tmp_path / "tokens.npy"]
    done = subprocess.run([*map(str, command), "--look-every", "8"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert expected in done.stderr


def test_the_program_takes_looks_and_a_profile_is_of_single_calls(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path
) -> None:
    tokens, timings, profile = (tmp_path / name for name in ("tokens.npy", "timings.json", "profile.json"))
    command = [stand_in.build.program("arforge-run"), stand_ins("classes"), "--target", RTX, "--precision", "fp32"]
    command += ["--class", "3,1", "--schedule", "zipar:2", "--look-every", "5", "--batch", "2"]
    command += ["--tokens", tokens, "--timings", timings]
    expected = runner.generate([3, 1], [0, 1], schedule="zipar:2")
    steps = int(expected.passes[0])
    for more, calls in (([], -(-steps // 5)), (["--profile", profile, "--warm-ups", "0", "--repeats", "1"], steps)):
        done = subprocess.run([*map(str, [*command, *more])], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if not more:
            np.testing.assert_array_equal(np.load(tokens), expected.tokens)
            assert len(json.loads(timings.read_text())["step_seconds"]) == calls
    (row,) = json.loads(profile.read_text())["schedules"]
    assert row["measured_steps"] == steps
    assert sum(entry["steps"] for entry in row["ms_per_step_by_width"]) == steps
    assert re.match(r"zipar:2", row["schedule"])
