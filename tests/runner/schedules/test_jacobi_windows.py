"""The window that a batch takes where a request leaves it open."""

from __future__ import annotations

from typing import Any

import pytest

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.jacobi_windows import MeasuredWindow, best_window, measured_windows, settled

MEASURED = (
    MeasuredWindow(2, 40, 0.8, 1),
    MeasuredWindow(4, 30, 0.7, 1),
    MeasuredWindow(2, 44, 0.9, 8),
    MeasuredWindow(4, 33, 1.4, 8),
)


@pytest.mark.parametrize(("images", "window"), [(1, 4), (2, 2), (7, 2), (8, 2), (9, 1)])
def test_the_quickest_of_the_least_batch_that_is_no_smaller(images: int, window: int) -> None:
    assert best_window(MEASURED, images) == window
    assert best_window(MEASURED[::-1], images) == window


@pytest.mark.parametrize(("time", "window"), [(0.969, 3), (0.97, 1), (1.2, 1)])
def test_what_hardly_gains_is_next_token(time: float, window: int) -> None:
    assert best_window([MeasuredWindow(3, 30, time)], 1) == window


def test_a_larger_batch_in_which_nothing_pays_says_nothing_of_a_smaller_one() -> None:
    measured = [MeasuredWindow(3, 30, 0.6, 1), MeasuredWindow(3, 30, 1.6, 8)]
    assert [best_window(measured, images) for images in (1, 2, 8, 9)] == [3, 1, 1, 1]
    assert best_window([], 1) == 1


@pytest.mark.parametrize(
    ("given", "alone", "batch"),
    [
        ("jacobi:auto", "ntp,jacobi=4", "ntp"),
        ("ntp,jacobi=auto,cfg-interval=9", "ntp,cfg-interval=9,jacobi=4", "ntp,cfg-interval=9"),
        ("jacobi:auto,cfg-interval=9", "ntp,cfg-interval=9,jacobi=4", "ntp,cfg-interval=9"),
        ("jacobi:3", "jacobi:3", "jacobi:3"),
        ("zipar:4,jacobi=8", "zipar:4,jacobi=8", "zipar:4,jacobi=8"),
        ("ntp", "ntp", "ntp"),
    ],
)
def test_only_what_is_left_open_is_settled(given: str, alone: str, batch: str) -> None:
    assert settled(given, MEASURED, 1) == alone
    assert settled(given, MEASURED, 9) == batch


def test_what_is_no_specification_is_refused() -> None:
    with pytest.raises(ScheduleError, match="unknown schedule 'jacobi'"):
        settled("jacobi", MEASURED, 1)


def test_an_identity_tells_what_its_engine_does_exactly_and_is_wide_enough_for() -> None:
    listed = [{"inputs": 2, "calls": 40, "time": 0.8}, {"images": 8, "inputs": 4, "calls": 30, "time": 0.7}]
    identity: dict[str, Any] = {"widths": None, "jacobi": listed}
    both = (MeasuredWindow(2, 40, 0.8, 1), MeasuredWindow(4, 30, 0.7, 8))
    assert measured_windows(identity, exact=True) == both
    assert [one.to_json() for one in both] == [{"images": 1, **listed[0]}, listed[1]]
    assert measured_windows({**identity, "widths": [1, 3]}, exact=True) == both[:1]
    assert measured_windows({"widths": None}, exact=True) == ()
    assert measured_windows(identity, exact=False) == ()  # whose tokens may be others
