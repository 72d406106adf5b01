"""Writes what a generation gives: a PNG grid, the array file of FID evaluators, or tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import RequestError

GAP = 2


def grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Lay out uint8 [images, height, width, 3] on white in rows of `columns` (default: nearly square)."""
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        page[top : top + height, left : left + width] = image
    return page


def save_png(path: Path, images: NDArray[np.uint8], columns: int | None = None, zoom: int = 1) -> None:
    """Save images as one PNG grid, each pixel `zoom` times as large."""
    from PIL import Image

    page = grid(images, columns).repeat(zoom, axis=0).repeat(zoom, axis=1)
    write_whole(path, lambda file: Image.fromarray(page).save(file, format="PNG"))


def save_npz(path: Path, images: NDArray[np.uint8]) -> None:
    """Save `arr_0`, uint8 [images, height, width, 3], as the field's FID evaluators read it."""
    write_whole(path, lambda file: np.savez(file, arr_0=images))


def save_tokens(path: Path, tokens: NDArray[np.int64]) -> None:
    """Save int64 [images, cells], raster order, as .npy."""
    write_whole(path, lambda file: np.save(file, tokens))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all. Raises RequestError where it cannot be written."""
    if not path.name:
        raise RequestError(f"cannot write {path}: it is a folder")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
