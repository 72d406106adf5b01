"""Whatever an image file holds comes out as 8-bit, upright RGB, or is refused in one sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arforge.runner.errors import ImageError
from arforge.runner.image_file import image_size, read_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_plain_pictures_come_as_they_are(tmp_path: Path) -> None:
    for suffix, options in (("png", {}), ("bmp", {}), ("tiff", {}), ("ppm", {}), ("webp", {"lossless": True})):
        path = save(tmp_path / f"a.{suffix}", PIXELS, **options)
        assert image_size(path) == (6, 4)
        picture = read_image(path)
        assert picture.transparent is None
        assert picture.pixels.dtype == np.uint8
        assert (picture.pixels == PIXELS).all()


def test_grey_and_black_and_white_get_three_equal_channels(tmp_path: Path) -> None:
    assert (read_image(save(tmp_path / "a.png", GREY)).pixels == GREY[..., None]).all()
    black = read_image(save(tmp_path / "b.png", GREY, "1")).pixels
    assert set(np.unique(black)) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 128 * 257, 65535, 600]], dtype=np.uint16)
    assert read_image(save(tmp_path / f"a.{suffix}", deep)).pixels[0, :, 0].tolist() == [0, 1, 128, 255, 2]


def test_sixteen_bits_of_a_pgm_become_eight(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + np.array([0, 128 * 257, 65535], ">u2").tobytes())
    assert read_image(path).pixels[0, :, 0].tolist() == [0, 128, 255]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colours_of_sixteen_bits_become_eight(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, b"\0" + np.array([65535, 128 * 257, 257], ">u2").tobytes()))
    assert read_image(tmp_path / "a.png").pixels[0, 0].tolist() == [255, 128, 1]


def test_one_transparent_value_of_sixteen_bits_is_transparent(tmp_path: Path) -> None:
    rows = b"\0" + np.array([65535, 1000], ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 1000))))
    transparent = read_image(tmp_path / "a.png").transparent
    assert transparent is not None
    assert transparent.tolist() == [[False, True]]


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).quantize(24)
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png").pixels == np.asarray(image.convert("RGB"))).all()
    image.save(tmp_path / "b.png", transparency=bytes([0] + [255] * 23))
    transparent = read_image(tmp_path / "b.png").transparent
    assert transparent is not None
    assert (transparent == (np.asarray(image) == 0)).all()


def test_alpha_is_told_apart_from_colours(tmp_path: Path) -> None:
    alpha = np.array([[255, 254, 0, 255]] * 6, dtype=np.uint8)
    picture = read_image(save(tmp_path / "a.png", np.dstack([PIXELS, alpha])))
    assert (picture.pixels == PIXELS).all()
    assert picture.transparent is not None
    assert (picture.transparent == (alpha < 255)).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    flat = np.full((8, 8, 3), (200, 40, 90), dtype=np.uint8)
    picture = read_image(save(tmp_path / "a.jpg", flat, "CMYK", quality=100))
    assert picture.pixels.shape == (8, 8, 3)
    assert np.abs(picture.pixels.astype(int) - (200, 40, 90)).max() < 8


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(("orientation", "turned"), [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))])
def test_pictures_are_upright(tmp_path: Path, suffix: str, orientation: int, turned: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves = np.zeros((16, 32, 3), dtype=np.uint8)
    halves[:, :16] = 255
    path = save(tmp_path / f"a.{suffix}", halves, exif=exif)
    wanted = turned(halves)  # type: ignore[operator]
    assert image_size(path) == wanted.shape[:2]
    found = read_image(path).pixels
    assert found.shape == wanted.shape
    assert ((found > 127) == (wanted > 127)).mean() > 0.9


def frames(kind: str) -> bytes:
    file = io.BytesIO()
    first, second = (Image.fromarray(part) for part in (PIXELS, 255 - PIXELS))
    first.save(file, format=kind, save_all=True, append_images=[second])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(frames(kind))
    for read in (image_size, read_image):
        with pytest.raises(ImageError, match="cannot read image .*a: it holds several frames or pages"):
            read(tmp_path / "a")


def test_a_still_gif_is_read(tmp_path: Path) -> None:
    assert (read_image(save(tmp_path / "a.gif", GREY)).pixels == GREY[..., None]).all()


def test_deeper_pixels_are_refused(tmp_path: Path) -> None:
    for name, pixels in (("i", GREY.astype(np.int32) * 70000), ("f", GREY.astype(np.float32))):
        path = save(tmp_path / f"{name}.tiff", pixels)
        with pytest.raises(ImageError, match="its pixels have 32 bits: save it as a PNG"):
            read_image(path)


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(12000, 12000, 1, 0, b""))
    for read in (image_size, read_image):
        with pytest.raises(ImageError, match="144000000 pixels"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "bmp", "ppm"])
def test_a_file_that_is_cut_or_changed_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    noise = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole = save(tmp_path / f"a.{suffix}", noise, "P" if suffix == "gif" else None).read_bytes()
    refused = 0
    for trial in range(120):
        content = bytearray(whole)
        if trial % 2:
            content = content[: RNG.integers(1, len(whole))]
        else:
            for place in RNG.integers(0, len(whole), 4):
                content[place] ^= int(RNG.integers(1, 256))
        (tmp_path / "b").write_bytes(content)
        try:
            assert read_image(tmp_path / "b").pixels.ndim == 3
        except ImageError:
            refused += 1
    assert refused > 20


def test_what_is_no_picture_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("text", "it is none of PNG, JPEG"),
        ("pipe", "it is no file"),
        (".", "it is no file"),
        ("missing", "No such file or directory"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)
