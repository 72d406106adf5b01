"""Running ahead on drafts in C++ without the host between calls: Python's tokens, calls, launches and looks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_abi import STATUS, Failure, Partial
from fake_gpu import RTX
from own_paces import asked
from stand_in_bundle import copied, rewrite, spoil_token
from tensorrt_pairs import KINDS, StandIn, StandIns, counted, open_python

from arforge.runner import Runner, open_bundle
from arforge.runner.errors import NumericsError

PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0}
CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]
BY_HOST = {"loop": None, "loop_graph": None, "loop_layers": None}
"""What an identity says of an engine without a loop."""


def looks(passes: Any, each: int, every: int = 8) -> int:
    """Of batches of so many images; after each the tokens are fetched, since its end is not known before."""
    parts = [passes[first : first + each].max() for first in range(0, len(passes), each)]
    return sum(-(-int(part) // every) + 1 for part in parts)


@pytest.mark.parametrize("settings", [{"guidance": 2.0}, {"guidance": 1.0, "top_k": 9}, {"greedy": True}], ids=str)
def test_batches_of_all_sizes_have_the_hosts_tokens_and_calls(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path, settings: dict[str, Any]
) -> None:
    ours = stand_in.open(copied(stand_ins("jacobi"), tmp_path / "its.bundle", decoder=None))
    for number in (1, 3):
        ours.generate(CLASSES[:number], schedule="jacobi:6")  # which is captured meanwhile
    for number in (1, 2, 3, 5):
        request: dict[str, Any] = {"classes": CLASSES[:number], "seeds": SEEDS[:number], **settings}
        request["schedule"] = "jacobi:6"
        expected = runner.generate(**request)
        found, (launches, waits, *_, allocations) = counted(
            stand_in, lambda request=request: ours.generate(**request, batch=3)
        )
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        batches = -(-number // 3)
        assert (launches + batches, waits, allocations) == (*[looks(expected.passes, 3)] * 2, 0)
        assert waits < int(expected.passes.max())
    ours.close()


@pytest.mark.parametrize(("look_every", "every"), [(1, 2), (5, 6), (0, 8), (2**30, 64)])
def test_looks_are_even_and_no_further_apart_than_a_graph_is_long(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path, look_every: int, every: int
) -> None:
    path = copied(stand_ins("jacobi"), tmp_path / "its.bundle", decoder=None)
    ours = stand_in.open(path, look_every=look_every)
    request: dict[str, Any] = {"classes": [7], "seeds": [5], "schedule": "jacobi:6"}
    expected = runner.generate(**request, guidance=2.0)
    ours.generate(**request)
    found, (_, waits, *_) = counted(stand_in, lambda: ours.generate(**request, guidance=2.0))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert waits == looks(expected.passes, 1, every)
    with open_python(path, look_every=look_every) as theirs:
        told: list[tuple[int, int]] = []
        python = theirs.generate(**request, guidance=2.0, progress=lambda *now: told.append(now))
    np.testing.assert_array_equal(python.tokens, expected.tokens)
    assert len(told) == waits - 1
    ours.close()


def test_images_of_one_mask_run_ahead_one_by_one_between_steps_of_tables(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner
) -> None:
    """Both kinds of launch have the same steps."""
    ours = stand_in.open(stand_ins("mixed"))
    for schedule in ("ntp", "jacobi:6", "zipar:4", "jacobi:6", "ntp"):
        expected = runner.generate(CLASSES, SEEDS, schedule, guidance=2.0)
        found, (_, waits, *_) = counted(
            stand_in, lambda schedule=schedule: ours.generate(CLASSES, SEEDS, schedule, guidance=2.0)
        )
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert waits < expected.passes.sum()
    ours.close()


def test_noise_goes_up_once(stand_in: StandIn, stand_ins: StandIns, noise_runner: Runner) -> None:
    ours = stand_in.open(stand_ins("noise"))
    for settings in ({"guidance": 2.0}, {"guidance": 1.0, "temperature": 0.8}):
        request: dict[str, Any] = {"classes": CLASSES, "seeds": SEEDS, "schedule": "jacobi:6", **PLAIN, **settings}
        expected = noise_runner.generate(**request)
        found, (_, _, sent, *_) = counted(stand_in, lambda request=request: ours.generate(**request))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        batches, noise = 3, 4 * 2 * 64 * 32
        assert batches * noise < sent < 2 * batches * noise
    ours.close()


@pytest.mark.parametrize("kind", ["features", "ids"])
def test_prompts_of_unequal_lengths(
    stand_in: StandIn, stand_ins: StandIns, request: pytest.FixtureRequest, kind: str
) -> None:
    whole: Runner = request.getfixturevalue(KINDS[f"{kind}-ahead"][0].replace("bundle", "runner"))
    ours = stand_in.open(stand_ins(f"{kind}-ahead"))
    for schedule, count in (("jacobi:5", 5), ("ntp", 2), ("jacobi:5", 3)):
        wishes = {name: value[:count] for name, value in asked(kind).items() if name != "top_k"}
        expected = whole.generate(**wishes, schedule=schedule, top_k=12)
        found, (_, waits, *_) = counted(
            stand_in, lambda wishes=wishes, schedule=schedule: ours.generate(**wishes, schedule=schedule, top_k=12)
        )
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert waits < expected.passes.sum()
    ours.close()


def test_a_narrower_window_takes_the_calls_that_there_are(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner
) -> None:
    ours = stand_in.open(stand_ins("jacobi"))
    expected = runner.generate([7], [5], "jacobi:6", guidance=2.0)
    found, (_, waits, *_) = counted(stand_in, lambda: ours.generate([7], [5], "jacobi:5", guidance=2.0))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert waits < int(expected.passes[0]) // 2
    ours.close()


def test_progress_previews_and_cancel_come_at_pythons_looks(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner
) -> None:
    path = stand_ins("jacobi")
    ours = stand_in.open(path)
    request: dict[str, Any] = {"classes": CLASSES[:3], "seeds": SEEDS[:3], "schedule": "jacobi:6"}
    expected = runner.generate(**request)
    told: list[list[tuple[int, int]]] = [[], []]
    shown: list[tuple[int, Any]] = []
    theirs: list[tuple[int, Any]] = []

    def show(partial: Partial) -> None:
        shown.append((partial.facts.done, partial.tokens().reshape(3, -1)))

    found = ours.generate(**request, progress=lambda *now: told[0].append(now), preview=show)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    with open_python(path) as python:
        python.generate(
            **request,
            progress=lambda *now: told[1].append(now),
            preview=lambda partial: theirs.append((partial.done, partial.tokens().reshape(3, -1))),
        )
    assert told[0] == told[1]
    assert told[0][-1] == (64, 64)
    assert 3 < len(told[0]) < 10
    for (done, tokens), (wanted, same) in zip(shown, theirs, strict=True):
        assert done == wanted
        np.testing.assert_array_equal(tokens, same)
    assert 0 < (shown[1][1] == -1).sum() < shown[0][1].size
    with pytest.raises(Failure, match=f"cancelled after {told[0][0][0]} of 64 steps") as cancelled:
        ours.generate(**request, progress=lambda *_: True)
    assert cancelled.value.status == STATUS["cancelled"]
    np.testing.assert_array_equal(ours.generate(**request).tokens, expected.tokens)
    ours.close()


@pytest.mark.parametrize("look_every", [2, 8, 64])
def test_numbers_that_are_none_stop_it_where_the_host_would_have(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path, look_every: int
) -> None:
    """Step and image are those of a loop that the host looks after at each call."""
    request: dict[str, Any] = {"classes": CLASSES[:3], "seeds": SEEDS[:3], "schedule": "jacobi:6"}
    tokens = runner.generate(**request).tokens.reshape(3, 64)
    firsts = {int(token): int((tokens == token).any(0).argmax()) for token in np.unique(tokens[:, :60])}
    token = max(firsts, key=lambda one: firsts[one])
    spoilt = spoil_token(stand_ins("jacobi"), tmp_path / "spoilt.bundle", token)
    said = []
    for path in (spoilt, copied(spoilt, tmp_path / "by-host.bundle", **BY_HOST)):
        ours = stand_in.open(path, look_every=look_every)
        for _ in range(2):
            with pytest.raises(Failure, match="the logits are non-finite") as refused:
                ours.generate(**request)
            assert refused.value.status == STATUS["numerics"]
            said.append(refused.value.message)
        ours.close()
    assert said == said[:1] * 4
    with open_python(spoilt, look_every=look_every) as theirs, pytest.raises(NumericsError) as expected:
        theirs.generate(**request)
    place = said[0].split(":")[0]
    assert str(expected.value).startswith(f"{place}: the logits are non-finite")
    assert place != "step 0 of 64, image 0"


def test_an_engine_that_fails_between_two_calls_is_quoted_and_the_next_request_is_sound(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = stand_in.open(stand_ins("jacobi"))
    expected = runner.generate(CLASSES, SEEDS, "jacobi:6").tokens
    ours.generate([1], schedule="jacobi:6")
    monkeypatch.setenv("STAND_IN_FAILURE", "out of registers")
    with pytest.raises(Failure, match=r"failed in .*\.engine: out of registers") as failure:
        ours.generate([1, 2, 3], schedule="jacobi:6")  # whose calls are no graph yet
    assert failure.value.status == STATUS["engine"]
    monkeypatch.delenv("STAND_IN_FAILURE")
    np.testing.assert_array_equal(ours.generate(CLASSES, SEEDS, "jacobi:6").tokens, expected)
    ours.close()


def test_without_capture_it_runs_all_the_same(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_UNCAPTURABLE", "1")
    ours, expected = stand_in.open(stand_ins("jacobi")), runner.generate(CLASSES, SEEDS, "jacobi:6").tokens
    found, (launches, *_) = counted(stand_in, lambda: ours.generate(CLASSES, SEEDS, "jacobi:6"))
    np.testing.assert_array_equal(found.tokens, expected)
    assert launches == 0
    ours.close()


def test_a_graph_of_other_sizes_is_refused(stand_in: StandIn, stand_ins: StandIns, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stand_ins("jacobi"), tmp_path / "its.bundle"))
    file = open_bundle(path).engine(RTX, "fp32")["loop"]
    content = (path / file).read_bytes()
    assert b"shape known 1 64" in content
    rewrite(path, file, content.replace(b"shape known 1 64", b"shape known 1 65"))
    ours = stand_in.open(path)
    with pytest.raises(Failure, match=r"does not take known as int64 \[1, 64\]: build the engine again") as refused:
        ours.generate([1], schedule="jacobi:6")
    assert refused.value.status == STATUS["engine"]
    ours.close()


def test_a_line_of_other_inputs_is_the_hosts(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path
) -> None:
    ours = stand_in.open(copied(stand_ins("jacobi"), tmp_path / "its.bundle", decoder=None, loop_inputs=63))
    ours.generate([1], schedule="jacobi:6")
    expected = runner.generate([7], [5], "jacobi:6")
    found, (launches, *_) = counted(stand_in, lambda: ours.generate([7], [5], "jacobi:6"))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert launches == int(expected.passes[0])
    ours.close()


@pytest.mark.parametrize("key", ["loop", "loop_graph"])
def test_an_identity_that_names_a_file_outside_is_refused(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path, key: str
) -> None:
    path = copied(stand_ins("jacobi"), tmp_path / "its.bundle", **{key: "../step.engine"})
    assert f"{key} '../step.engine' is not listed among the bundle's files" in stand_in.refused(path)
