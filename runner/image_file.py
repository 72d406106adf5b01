"""Image files as pixels: 8-bit, upright and RGB, whatever the file holds, or an ImageError that says why not."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

# Pillow reads more, some of it (EPS) by running another program on the file.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SIXTEEN_BITS = ("PNG", "PPM")  # whose grey pixels of 16 bits some versions of Pillow give as 32-bit integers
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
STEP = 257  # of 16 bits, a step of 8 bits
OPAQUE = 255
ORIENTATION = 0x0112  # of EXIF; from 5 on, height and width are exchanged
SIDEWAYS = 5


Source = Path | bytes
"""An image file, or what one would hold."""


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.uint8]  # (height, width, 3), RGB
    transparent: NDArray[np.bool_] | None  # (height, width): not wholly opaque; None where the file has no transparency


def image_size(path: Source) -> tuple[int, int]:
    """Height and width as the picture is seen, from the header where that tells. Raises ImageError."""
    with _opened(path) as image:
        if image.format == "TIFF":  # versions of Pillow differ in when they turn it
            return _upright(image).size[::-1]
        # of a PNG, looking for what may come after the pixels would decode them
        known = image.format != "PNG" or "exif" in image.info
        sideways = known and image.getexif().get(ORIENTATION, 1) >= SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def read_image(path: Source) -> Picture:
    """An image file's pixels. Raises ImageError for what is no still image of at most 16 bits, or is damaged."""
    with _opened(path) as image:
        shown = _eight_bits(_upright(image), str(image.format))
        if shown.mode not in WITH_ALPHA and "transparency" not in shown.info:
            return Picture(np.asarray(shown.convert("RGB")), None)
        pixels = np.asarray(shown.convert("RGBA"))
        return Picture(np.ascontiguousarray(pixels[..., :3]), pixels[..., 3] != OPAQUE)


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """A still image of a known format, not yet decoded; what fails inside becomes an ImageError."""
    from PIL import Image, UnidentifiedImageError

    path = name_of(source)
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise ImageError(path, "it is no file")
        Image.init()
        opened = source if isinstance(source, Path) else io.BytesIO(source)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(opened, formats=[name for name in FORMATS if name in Image.OPEN])
        with image:
            # a phone's JPEG may come with previews, which Pillow calls frames of an MPO
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise ImageError(path, "it holds several frames or pages: save the one that is meant as a PNG")
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(path, f"it is none of {', '.join(FORMATS)}: save it as a PNG") from None
    except OSError as error:
        raise ImageError(path, f"{error.strerror or error}") from error
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        raise ImageError(path, f"{error or type(error).__name__}: save it as a PNG") from error


def name_of(source: Source) -> object:
    """For messages."""
    return source if isinstance(source, Path) else f"of {len(source)} bytes"


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image, kind: str) -> Image.Image:
    """With at most 8 bits a channel; Pillow itself would cut off what is brighter."""
    from PIL import Image

    wide = image.mode.startswith("I;16") or (image.mode == "I" and kind in SIXTEEN_BITS)
    if not wide:
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits")
        return image
    values: NDArray[Any] = np.asarray(image).astype(np.int64)
    grey = ((values + STEP // 2) // STEP).clip(0, OPAQUE).astype(np.uint8)
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return Image.fromarray(grey)
    return Image.fromarray(np.stack([grey, np.where(values == hidden, 0, OPAQUE).astype(np.uint8)], axis=-1))
