"""The tokens of a request before decoding, and the windows in which a model decodes them.

A canvas is the model's own grid or a larger one, with some cells known. A model sees one window of its own grid at a
time; what an earlier window decided is known to the later ones (ARPG's resolution expansion, arXiv 2503.10568).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import RequestError
from arforge.runner.schedules.check import MAX_CELLS

UNKNOWN = -1


@dataclass(frozen=True)
class Window:
    cells: NDArray[np.int64]  # the canvas cell of each cell of the model's grid
    kept: tuple[int, ...]  # cells of the model's grid that are known when the window's turn comes


@dataclass(frozen=True)
class Canvas:
    grid: tuple[int, int]
    tokens: NDArray[np.int64]  # (images, cells), UNKNOWN where to decide
    windows: tuple[Window, ...]

    @property
    def plain(self) -> bool:
        """Whether the model decodes its own grid with nothing known."""
        return len(self.windows) == 1 and not self.windows[0].kept


def make_canvas(known: NDArray[np.int64] | None, images: int, grid: tuple[int, int], vocabulary: int) -> Canvas:
    """The canvas of a request for a model of that grid.

    `known`: int64 [rows, columns] or [images, rows, columns], UNKNOWN where to decide; None: nothing is known.
    Raises RequestError for another shape, tokens out of range, or nothing to decide.
    """
    if known is None:
        known = nothing_known(grid)
    try:
        known = np.asarray(known)
    except ValueError:
        raise RequestError("known tokens are rows of different lengths: give each row all its cells") from None
    if not np.issubdtype(known.dtype, np.integer) or known.ndim not in (2, 3):
        raise RequestError(
            f"known tokens are {known.dtype} {list(known.shape)}: use whole numbers [rows, columns] or "
            "[images, rows, columns]"
        )
    height, width = known.shape[-2:]
    if known.ndim == 3 and len(known) != images:
        raise RequestError(f"known tokens of {len(known)} images for {images} classes: give as many, or one for all")
    if height < grid[0] or width < grid[1] or height * width > MAX_CELLS:
        raise RequestError(
            f"a grid of {height}x{width} is out of range: use the model's {grid[0]}x{grid[1]}, or a larger one of up "
            f"to {MAX_CELLS} cells"
        )
    if not UNKNOWN <= known.min() <= known.max() < vocabulary:
        raise RequestError(f"known tokens go from {known.min()} to {known.max()}: use -1 to {vocabulary - 1}")
    tokens = np.array(np.broadcast_to(known, (images, height, width)), dtype=np.int64).reshape(images, -1)
    kept = tokens != UNKNOWN
    if (kept != kept[0]).any():
        raise RequestError("images know different cells: a request decides the same cells in all of them; use several")
    if kept[0].all():
        raise RequestError("nothing to decide: every cell is known")
    return Canvas((height, width), tokens, windows_of(kept[0].reshape(height, width), grid))


def nothing_known(grid: tuple[int, int]) -> NDArray[np.int64]:
    """The `known` of a request that decides every cell of a grid."""
    return np.full(grid, UNKNOWN)


def windows_of(known: NDArray[np.bool_], grid: tuple[int, int]) -> tuple[Window, ...]:
    """Windows that overlap by half and together decide every cell; those that know most come first."""
    known = known.copy()
    cells = np.arange(known.size).reshape(known.shape)
    places = [
        (slice(top, top + grid[0]), slice(left, left + grid[1]))
        for top in starts(known.shape[0], grid[0])
        for left in starts(known.shape[1], grid[1])
    ]
    windows = []
    while open_places := [place for place in places if not known[place].all()]:
        place = max(open_places, key=lambda place: known[place].sum())
        windows.append(Window(cells[place].ravel(), tuple(np.flatnonzero(known[place]).tolist())))
        known[place] = True
    return tuple(windows)


def starts(size: int, window: int) -> list[int]:
    """Where windows begin along one side: half a window apart, the last one flush with the end."""
    return [*range(0, size - window, max(1, window // 2)), size - window]
