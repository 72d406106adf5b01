"""Images as they come to be: what a step has decided, and how to show what it has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.image_codec import ImageCodec
from arforge.runner.canvas import UNKNOWN, Canvas, Window
from arforge.runner.decoding import Decoding
from arforge.runner.errors import RequestError
from arforge.runner.request import whole

GREY = 128
UNDECIDED = ("nearest", "grey")  # how cells are shown that are not decided yet


@dataclass(frozen=True)
class Partial:
    """Some images of a request after a step. It holds until the function that it is given to returns."""

    first: int  # their place in the request
    done: int  # steps that all of them have behind them
    steps: int
    codec: ImageCodec | None  # None where the bundle has no image tokenizer
    grid: tuple[int, int]
    read: Callable[[], NDArray[np.int64]]
    count: int

    def tokens(self) -> NDArray[np.int64]:
        """What is decided, int64 [images, cells] in raster order; -1 in the other cells."""
        return self.read()

    def pixels(self, undecided: str = "nearest") -> NDArray[np.uint8]:
        """The images so far, uint8 [images, height, width, 3]: one call of the image decoder, and nothing unless asked.

        `undecided`: cells that are not decided show the decided one that is nearest, or are left grey.
        Raises RequestError for another word, or if the bundle has no image tokenizer.
        """
        if undecided not in UNDECIDED:
            raise RequestError(f"undecided cells as {undecided!r} are unknown: use one of {', '.join(UNDECIDED)}")
        if self.codec is None:
            raise RequestError("the bundle has no image tokenizer to show images with: export it with --tokenizer FILE")
        tokens = self.read().reshape(-1, *self.grid)
        open_cells = tokens == UNKNOWN
        images = self.codec.decode(nearest(tokens))
        if undecided == "nearest":
            open_cells &= open_cells.all(axis=(1, 2), keepdims=True)  # grey only where there is nothing near
        side = images.shape[1] // self.grid[0]
        return np.where(open_cells.repeat(side, axis=1).repeat(side, axis=2)[..., None], np.uint8(GREY), images)

    def part(self, images: slice, first: int) -> Partial:
        """Those of some images only, which are from `first` on in a request of their own."""
        count = len(range(*images.indices(self.count)))
        return replace(self, first=first, count=count, read=lambda: self.read()[images])


Preview = Callable[[Partial], None]
"""Called after every step with the images that are being decoded; what it does not ask for costs nothing."""


def every(steps: int, show: Preview) -> Preview:
    """Call `show` after each `steps`-th step only, but for the last. Raises RequestError for less than 1."""
    whole("steps between previews", steps, 1, 2**30)
    shown = 0

    def preview(partial: Partial) -> None:
        nonlocal shown
        if partial.done < shown:  # the next images of the request
            shown = 0
        if shown + steps <= partial.done < partial.steps:
            shown = partial.done
            show(partial)

    return preview


def partial_of(
    canvas: Canvas, images: slice, window: Window, codec: ImageCodec | None, steps: int, decoding: Decoding, done: int
) -> Partial:
    """What a window's decoding has made of some images of a canvas, after `done` steps of a request of `steps` each."""

    def read() -> NDArray[np.int64]:
        tokens = canvas.tokens[images].copy()
        count, cells = len(tokens), len(window.cells)
        tokens[:, window.cells] = np.where(decoding.decided, decoding.known[:count, :cells], UNKNOWN)
        return tokens

    count = len(canvas.tokens[images])
    before = images.start // max(1, images.stop - images.start) * steps  # of the images decoded before these
    return Partial(images.start, done - before, steps, codec, canvas.grid, read, count)


def nearest(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens [images, rows, columns] in which each undecided cell has that of a nearest decided one, by cells passed.

    Where several are as near, the one above goes before those to the left, to the right and below; 0 where none is.
    """
    tokens = tokens.copy()
    while (missing := tokens == UNKNOWN).any():
        before = tokens.copy()
        for axis, ahead in ((1, False), (2, False), (2, True), (1, True)):
            beside = np.full_like(before, UNKNOWN)
            taken, given = [slice(None)] * 3, [slice(None)] * 3
            taken[axis], given[axis] = (slice(1, None), slice(None, -1)) if ahead else (slice(None, -1), slice(1, None))
            beside[tuple(given)] = before[tuple(taken)]
            tokens = np.where(tokens == UNKNOWN, beside, tokens)
        if ((tokens == UNKNOWN) == missing).all():
            return np.maximum(tokens, 0)
    return tokens
