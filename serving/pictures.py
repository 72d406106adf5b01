"""Images as the files that a service answers with, and the request in their metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

Format = Literal["png", "jpeg", "webp"]
TYPES: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
QUALITY = 95  # of JPEG, where nothing is asked for
EXIF_ASCII = b"ASCII\0\0\0"  # begins a user comment


def encoded(
    pixels: NDArray[np.uint8], kind: Format, compression: int | None = None, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """An image file of uint8 [height, width, 3].

    `compression`: 0 to 100, the quality of JPEG (default 95) and WebP (default: without loss), of PNG the effort.
    `metadata` is written as JSON: into PNG's text chunk `parameters`, else into EXIF's user comment.
    """
    image, file = Image.fromarray(pixels), io.BytesIO()
    text = json.dumps(metadata) if metadata else ""
    if kind == "png":
        chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text("parameters", text)
        level = 6 if compression is None else round(compression * 9 / 100)
        image.save(file, format="PNG", pnginfo=chunks, compress_level=level)
        return file.getvalue()
    exif = Image.Exif()
    if text:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = EXIF_ASCII + text.encode()
    if kind == "jpeg":
        image.save(file, format="JPEG", quality=QUALITY if compression is None else compression, exif=exif)
    else:
        lossless = compression is None
        image.save(file, format="WEBP", lossless=lossless, quality=80 if lossless else compression, exif=exif)
    return file.getvalue()
