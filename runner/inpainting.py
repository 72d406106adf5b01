"""From an image and a mask to the tokens that a request keeps: inpainting, outpainting, class-conditional editing.

The whole image is encoded; a cell is kept where none of its pixels is to be painted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from arforge.runner.canvas import UNKNOWN
from arforge.runner.errors import RequestError
from arforge.runner.image_file import Source, image_size, name_of, read_image
from arforge.runner.runner import Runner

PAINTED = 128  # a mask's pixels of this lightness or more are painted
LIGHTNESS = np.array([299, 587, 114])  # thousandths of red, green and blue


def known_tokens(
    runner: Runner,
    image: Source,
    mask: Source | None = None,
    grid: tuple[int, int] | None = None,
    *,
    clear_paints: bool = False,
    encode: Callable[[NDArray[np.uint8]], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """The `known` of `Runner.generate`, int64 [rows, columns], from an image and what of it to paint anew.

    `mask`: an image of the same size, white where to paint; without it the image's own transparency says so.
    `clear_paints`: a mask that is transparent somewhere is painted there. `grid`: the tokens of the image, a side;
    default the model's. `encode`: in place of `Runner.encode`. Raises
    RequestError for files that cannot be read, sizes that do not fit, and masks that leave nothing to paint or nothing
    to keep.
    """
    tokenizer = runner.bundle.image_tokenizer
    if tokenizer is None:
        raise RequestError(f"{runner.bundle.root} has no image tokenizer: export it with --tokenizer FILE")
    rows, columns = grid or runner.bundle.model.grid
    side = tokenizer.downsampling
    size = image_size(image)
    if size != (rows * side, columns * side):
        raise RequestError(
            f"{name_of(image)} is {size[0]}x{size[1]} pixels (height x width), a grid of {rows}x{columns} makes "
            f"{rows * side}x{columns * side}: resize it"
        )
    picture = read_image(image)
    painted = picture.transparent if mask is None else read_mask(mask, size, clear_paints=clear_paints)
    if painted is None:
        raise RequestError(f"{name_of(image)} has no transparent part: name a mask that is white where to paint")
    name = name_of(mask or image)
    if not painted.any():
        raise RequestError(f"{name} leaves nothing to paint: make it white (or the image transparent) where to paint")
    kept = kept_cells(painted, side)
    if not kept.any():
        raise RequestError(f"{name} keeps no token whole ({side}x{side} pixels): paint less, or leave out the image")
    known: NDArray[np.int64] = (encode or runner.encode)(picture.pixels[None])[0]
    known[~kept] = UNKNOWN
    return known


def kept_cells(painted: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Bool [rows, columns]: cells of `side` pixels a side without a painted pixel."""
    height, width = painted.shape
    blocks = painted.reshape(height // side, side, width // side, side)
    touched = np.asarray(blocks.any(axis=(1, 3)))
    return ~touched


def read_mask(path: Source, size: tuple[int, int], *, clear_paints: bool = False) -> NDArray[np.bool_]:
    """Bool [height, width], true where the mask is light, or transparent if that paints.

    Raises RequestError for another size, or transparency that does not paint.
    """
    found = image_size(path)
    if found != size:
        raise RequestError(
            f"mask {name_of(path)} is {found[0]}x{found[1]} pixels (height x width), the image "
            f"{size[0]}x{size[1]}: make them the same size"
        )
    mask = read_image(path)
    if mask.transparent is not None and mask.transparent.any():
        if clear_paints:
            return mask.transparent
        raise RequestError(
            f"mask {name_of(path)} has transparent pixels: make it opaque, white where to paint and else black"
        )
    light: NDArray[np.bool_] = mask.pixels.astype(np.int64) @ LIGHTNESS >= PAINTED * LIGHTNESS.sum()
    return light
