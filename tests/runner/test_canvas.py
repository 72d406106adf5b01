"""What is known before decoding, and the windows in which the rest is decided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner.canvas import UNKNOWN, make_canvas, nothing_known, starts, windows_of
from arforge.runner.errors import RequestError

GRID = (4, 6)


def test_nothing_known_on_the_models_grid_is_one_plain_window() -> None:
    for known in (None, nothing_known(GRID)):
        canvas = make_canvas(known, 3, GRID, 32)
        assert canvas.plain
        assert canvas.grid == GRID
        assert canvas.tokens.tolist() == [[UNKNOWN] * 24] * 3
        assert canvas.windows[0].cells.tolist() == list(range(24))


def test_known_cells_are_kept_by_the_one_window() -> None:
    known = nothing_known(GRID)
    known[1, 2:5] = [7, 8, 9]
    canvas = make_canvas(known, 2, GRID, 32)
    assert [window.kept for window in canvas.windows] == [(8, 9, 10)]
    assert not canvas.plain
    assert canvas.tokens[:, 8:11].tolist() == [[7, 8, 9]] * 2


def test_images_may_know_different_tokens_of_the_same_cells() -> None:
    known = np.full((2, *GRID), UNKNOWN)
    known[:, 0, 0] = [3, 4]
    assert make_canvas(known, 2, GRID, 32).tokens[:, 0].tolist() == [3, 4]


def test_the_callers_array_is_left_alone() -> None:
    known = nothing_known(GRID)
    canvas = make_canvas(known, 1, GRID, 32)
    canvas.tokens[:] = 5
    assert (known == UNKNOWN).all()


def one_known(token: int, shape: tuple[int, ...] = GRID) -> np.ndarray:
    known = np.full(shape, UNKNOWN)
    known.flat[0] = token
    return known


DIFFERENT = np.stack([one_known(1), one_known(1)[::-1]])


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (np.zeros(GRID), "known tokens are float64"),
        (np.zeros(24, dtype=int), "use whole numbers .rows, columns. or"),
        (np.zeros((3, *GRID), dtype=int), "3 images for 2 classes"),
        (np.zeros(GRID, dtype=int), "nothing to decide"),
        (one_known(32), "from -1 to 32: use -1 to 31"),
        (one_known(-2), "from -2 to -1: use -1 to 31"),
        (nothing_known((3, 6)), "a grid of 3x6 is out of range: use the model's 4x6"),
        (nothing_known((4, 5)), "a grid of 4x5 is out of range"),
        (nothing_known((300, 300)), "up to 65536 cells"),
        (DIFFERENT, "images know different cells"),
    ],
    ids=["type", "shape", "images", "full", "too large", "too small", "low", "narrow", "huge", "different"],
)
def test_what_cannot_be_decoded_is_refused(known: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_canvas(known, 2, GRID, 32)


@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [(8, 8, [0]), (12, 8, [0, 4]), (16, 8, [0, 4, 8]), (9, 8, [0, 1]), (13, 8, [0, 4, 5]), (3, 1, [0, 1, 2])],
)
def test_windows_overlap_by_half_and_end_with_the_canvas(size: int, window: int, expected: list[int]) -> None:
    assert starts(size, window) == expected


@given(st.data())
def test_windows_decide_every_cell_once_and_know_what_came_before(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    shape = tuple(side + data.draw(st.integers(0, 9)) for side in grid)
    bits = data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    known = np.array(bits).reshape(shape)
    decided = known.copy().ravel()
    for window in windows_of(known, grid):
        assert len(window.cells) == grid[0] * grid[1]
        rows, columns = np.divmod(window.cells.reshape(grid), shape[1])
        assert (np.diff(rows, axis=0) == 1).all()
        assert (np.diff(columns, axis=1) == 1).all()
        assert tuple(np.flatnonzero(decided[window.cells])) == window.kept
        assert len(window.kept) < len(window.cells)
        decided[window.cells] = True
    assert decided.all()


def test_the_window_that_knows_most_comes_first() -> None:
    known = np.zeros((4, 12), dtype=bool)
    known[:, 7:9] = True
    order = [window.cells[0] for window in windows_of(known, (4, 4))]
    assert order[0] == 6
    assert set(order) == {0, 2, 4, 6, 8}
