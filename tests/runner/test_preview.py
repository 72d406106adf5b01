"""Partial images: what is decided is final, the rest is shown as asked, and nobody pays who does not ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arforge.runner import RequestError, Runner
from arforge.runner.preview import GREY, Partial, every, nearest


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("runner", "ntp"),
        ("runner", "zipar:2"),
        ("runner", "jacobi:4"),
        ("runner", "zipar:adaptive=1"),
        ("arpg_runner", "arpg:5"),
    ],
)
def test_what_a_step_has_decided_stays(name: str, schedule: str, request: pytest.FixtureRequest) -> None:
    runner: Runner = request.getfixturevalue(name)
    seen: list[tuple[int, np.ndarray]] = []
    result = runner.generate(
        classes=[1, 2, 3],
        schedule=schedule,
        guidance=2.0,
        batch=2,
        preview=lambda partial: seen.append((partial.first, partial.tokens())),
    )
    for first in (0, 2):
        own = [tokens for place, tokens in seen if place == first]
        expected = result.tokens[first : first + 2]
        for tokens in own:
            np.testing.assert_array_equal(tokens[tokens >= 0], expected[tokens >= 0])
        shares = [(tokens >= 0).mean() for tokens in own]
        assert shares == sorted(shares)
        assert 0 <= shares[0] < 1
        assert shares[-1] == 1


def test_kept_cells_and_windows_before_are_part_of_a_preview(arpg_runner: Runner) -> None:
    known = np.full((4, 9), -1)
    known[:, 0] = 7
    seen: list[np.ndarray] = []
    result = arpg_runner.generate([1], known=known, schedule="arpg:3", preview=lambda p: seen.append(p.tokens()[0]))
    assert (seen[0].reshape(4, 9)[:, 0] == 7).all()
    assert (seen[0].reshape(4, 9)[:, 6:] == -1).all()  # the second window's
    assert [tokens.size for tokens in seen] == [36] * result.steps
    np.testing.assert_array_equal(seen[-1], result.tokens[0])


def test_the_last_preview_is_the_image(runner: Runner) -> None:
    seen: list[np.ndarray] = []
    result = runner.generate([1, 2], schedule="zipar:2", preview=lambda partial: seen.append(partial.pixels("grey")))
    assert result.images is not None
    np.testing.assert_array_equal(seen[-1], result.images)


def test_undecided_cells_are_grey_or_as_the_nearest(runner: Runner) -> None:
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def show(partial: Partial) -> None:
        if partial.done == 20:  # 2 rows and a half
            seen.append((partial.tokens(), partial.pixels(), partial.pixels("grey")))

    runner.generate([1], schedule="ntp", preview=show)
    ((tokens, filled, grey),) = seen
    side = filled.shape[1] // 8
    open_pixels = (tokens.reshape(1, 8, 8) < 0).repeat(side, axis=1).repeat(side, axis=2)
    assert open_pixels.mean() == 44 / 64
    assert (grey[open_pixels] == GREY).all()
    np.testing.assert_array_equal(grey[~open_pixels], filled[~open_pixels])
    expected = runner._codec.decode(nearest(tokens.reshape(1, 8, 8)))
    np.testing.assert_array_equal(filled, expected)


def test_the_nearest_decided_cell_fills() -> None:
    grid = np.array([[[5, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, 9]]])
    # as near as each other: above before left before right before below
    expected = [[[5, 5, 5, 9], [5, 5, 9, 9], [5, 9, 9, 9]]]
    np.testing.assert_array_equal(nearest(grid), expected)
    beside = np.array([[[-1, 1, -1], [2, -1, 3], [-1, 4, -1]]])
    np.testing.assert_array_equal(nearest(beside)[0, 1], [2, 1, 3])
    np.testing.assert_array_equal(nearest(np.full((1, 2, 2), -1)), np.zeros((1, 2, 2)))


def test_every_so_many_steps_of_each_batch(runner: Runner) -> None:
    seen: list[tuple[int, int, int]] = []
    runner.generate(
        [1, 2, 3],
        schedule="ntp",
        batch=2,
        preview=every(16, lambda partial: seen.append((partial.first, partial.done, partial.steps))),
    )
    assert seen == [(0, 16, 64), (0, 32, 64), (0, 48, 64), (2, 16, 64), (2, 32, 64), (2, 48, 64)]


def test_part_of_a_preview(runner: Runner) -> None:
    seen: list[Any] = []

    def show(partial: Partial) -> None:
        part = partial.part(slice(1, 3), 0)
        seen.append((part.first, part.count, (part.tokens() == partial.tokens()[1:3]).all(), len(part.pixels())))

    runner.generate([1, 2, 3], schedule="zipar:2", preview=every(10, show))
    assert seen[0] == (0, 2, True, 2)


def test_who_does_not_ask_does_not_decode(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decode = runner._codec.decode
    monkeypatch.setattr(runner._codec, "decode", lambda tokens: calls.append(len(tokens)) or decode(tokens))
    runner.generate([1], schedule="zipar:2", preview=lambda partial: None)
    assert calls == [1]


def test_wrong_uses_are_named(runner: Runner, par_runner: Runner) -> None:
    with pytest.raises(RequestError, match="cannot be called: give a function of partial images"):
        runner.generate([1], preview=3)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="'blurred' are unknown: use one of nearest, grey"):
        runner.generate([1], preview=lambda partial: partial.pixels("blurred"))
    with pytest.raises(RequestError, match="no image tokenizer to show images with"):
        par_runner.generate([1], preview=lambda partial: partial.pixels())
    with pytest.raises(RequestError, match="steps between previews 0 is out of range"):
        every(0, lambda partial: None)
    assert runner.generate([1], greedy=True).tokens.shape == (1, 64)
