"""From an image and a mask to the tokens that a request keeps: inpainting, outpainting, class-conditional editing.

The whole image is encoded; a cell is kept where none of its pixels is to be painted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arforge.runner.canvas import UNKNOWN
from arforge.runner.errors import RequestError
from arforge.runner.runner import Runner

if TYPE_CHECKING:
    from PIL import Image

PAINTED = 128  # a mask's pixels of this lightness or more are painted


def known_tokens(
    runner: Runner, image: Path, mask: Path | None = None, grid: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """The `known` of `Runner.generate`, int64 [rows, columns], from an image file and what of it to paint anew.

    `mask`: an image of the same size, white where to paint; without it the image's own transparency says so.
    `grid`: the tokens of the image, a side; default the model's. Raises RequestError for files that cannot be read,
    sizes that do not fit, and masks that leave nothing to paint or nothing to keep.
    """
    tokenizer = runner.bundle.image_tokenizer
    if tokenizer is None:
        raise RequestError(f"{runner.bundle.root} has no image tokenizer: export it with --tokenizer FILE")
    rows, columns = grid or runner.bundle.model.grid
    side = tokenizer.downsampling
    pixels, transparent = read_image(image)
    if pixels.shape[:2] != (rows * side, columns * side):
        raise RequestError(
            f"{image} is {pixels.shape[0]}x{pixels.shape[1]} pixels (height x width), a grid of {rows}x{columns} makes "
            f"{rows * side}x{columns * side}: resize it"
        )
    if mask is None and transparent is None:
        raise RequestError(f"{image} has no transparent part: name a mask that is white where to paint")
    painted = transparent if mask is None else read_mask(mask, pixels.shape[:2])
    assert painted is not None
    name = mask or image
    if not painted.any():
        raise RequestError(f"{name} leaves nothing to paint: make it white (or the image transparent) where to paint")
    kept = kept_cells(painted, side)
    if not kept.any():
        raise RequestError(f"{name} keeps no token whole ({side}x{side} pixels): paint less, or leave out the image")
    known: NDArray[np.int64] = runner.encode(pixels[None])[0]
    known[~kept] = UNKNOWN
    return known


def kept_cells(painted: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Bool [rows, columns]: cells of `side` pixels a side without a painted pixel."""
    height, width = painted.shape
    blocks = painted.reshape(height // side, side, width // side, side)
    touched = np.asarray(blocks.any(axis=(1, 3)))
    return ~touched


def read_image(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Pixels, uint8 [height, width, 3], and which are not opaque, where the image has transparency."""
    image = _open(path)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None
    pixels = np.asarray(image.convert("RGBA"))
    return np.ascontiguousarray(pixels[..., :3]), pixels[..., 3] < np.iinfo(np.uint8).max


def read_mask(path: Path, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Bool [height, width], true where the mask is light. Raises RequestError for another size."""
    lightness = np.asarray(_open(path).convert("L"))
    if lightness.shape != size:
        raise RequestError(
            f"mask {path} is {lightness.shape[0]}x{lightness.shape[1]} pixels (height x width), the image "
            f"{size[0]}x{size[1]}: make them the same size"
        )
    return lightness >= PAINTED


def _open(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise RequestError(
            f"cannot read image {path}: {error}. Use a PNG, or another format that Pillow reads"
        ) from None
    return image
