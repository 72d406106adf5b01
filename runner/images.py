"""Writes what a generation gives: a PNG grid, the array file of FID evaluators, or tokens."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arforge.runner.output import write_whole, writing

__all__ = [
    "GAP",
    "Keep",
    "Page",
    "Pixels",
    "grid",
    "npz_of",
    "save_npz",
    "save_page",
    "save_png",
    "save_tokens",
    "write_whole",
]
GAP = 2  # pixels between the images of a grid
Add = Callable[[NDArray[np.uint8]], object]
"""Takes the next images, uint8 [images, height, width, 3]."""
Keep = bool | Add
"""What becomes of the images of a generation: kept (True), left out, or handed to a function."""


class Pixels:
    """The images of a generation, as they come: handed on, or all kept in one array."""

    def __init__(self, count: int, keep: Keep) -> None:
        self.kept: NDArray[np.uint8] | None = None
        self._count, self._done = count, 0
        self._receive = None if keep is True else keep

    def add(self, images: NDArray[np.uint8]) -> None:
        """Take the next ones, uint8 [images, height, width, 3]."""
        if callable(self._receive):
            self._receive(images)
        elif len(images) == self._count:
            self.kept = images
        else:
            if self.kept is None:
                self.kept = np.empty((self._count, *images.shape[1:]), dtype=np.uint8)
            self.kept[self._done : self._done + len(images)] = images
        self._done += len(images)


class Page:
    """The grid of `count` images on white, filled as they come, in rows of `columns` (default: nearly square)."""

    def __init__(self, count: int, columns: int | None = None) -> None:
        self._count, self._columns = count, columns or math.ceil(math.sqrt(count))
        self._placed = 0
        self.pixels: NDArray[np.uint8] = np.empty((0, 0, 3), dtype=np.uint8)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Place the next images, uint8 [images, height, width, 3], all of one size."""
        _, height, width, _ = images.shape
        if not self._placed:
            rows, columns = math.ceil(self._count / self._columns), self._columns
            shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
            self.pixels = np.full(shape, 255, dtype=np.uint8)
        for image in images:
            top = (self._placed // self._columns) * (height + GAP)
            left = (self._placed % self._columns) * (width + GAP)
            self.pixels[top : top + height, left : left + width] = image
            self._placed += 1


def grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Lay out uint8 [images, height, width, 3] on white in rows of `columns` (default: nearly square)."""
    page = Page(len(images), columns)
    page.add(images)
    return page.pixels


def save_png(path: Path, images: NDArray[np.uint8], columns: int | None = None, zoom: int = 1) -> None:
    """Save images as one PNG grid, each pixel `zoom` times as large."""
    save_page(path, grid(images, columns), zoom)


def save_page(path: Path, pixels: NDArray[np.uint8], zoom: int = 1) -> None:
    """Save uint8 [height, width, 3] as PNG, each pixel `zoom` times as large."""
    from PIL import Image

    page = pixels if zoom == 1 else pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    write_whole(path, lambda file: Image.fromarray(page).save(file, format="PNG"))


@contextmanager
def npz_of(path: Path, count: int) -> Iterator[Add]:
    """An array file `arr_0`, uint8 [count, height, width, 3], that is given its images a few at a time.

    It is there when the block ends, in which all of them have come. Raises RequestError if it cannot be written.
    """
    with (
        writing(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        begun = False

        def add(images: NDArray[np.uint8]) -> None:
            nonlocal begun
            if not begun:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *images.shape[1:])}
                np.lib.format.write_array_header_1_0(member, header)
                begun = True
            member.write(np.ascontiguousarray(images).data)

        yield add


def save_npz(path: Path, images: NDArray[np.uint8]) -> None:
    """Save `arr_0`, uint8 [images, height, width, 3], as the field's FID evaluators read it."""
    with npz_of(path, len(images)) as add:
        add(images)


def save_tokens(path: Path, tokens: NDArray[np.int64]) -> None:
    """Save int64 [images, cells], raster order, as .npy."""
    write_whole(path, lambda file: np.save(file, tokens))
