"""Folders and array files of images, and what is wrong with some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arforge.calibration.quality.image_set import open_image_set
from arforge.runner.errors import EvaluationError
from arforge.runner.images import save_npz

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 4, 3), dtype=np.uint8)


def save_all(folder: Path, images: NDArray[np.uint8]) -> None:
    for index, image in enumerate(images):
        path = folder / f"part-{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_folder_is_searched_and_sorted(tmp_path: Path) -> None:
    save_all(tmp_path, PIXELS)
    (tmp_path / "readme.txt").write_text("no image")
    images = open_image_set(tmp_path)
    assert (images.count, images.size) == (7, (6, 4))
    parts = list(images.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    order = [0, 2, 4, 6, 1, 3, 5]  # part-0 before part-1
    assert (np.concatenate(parts) == PIXELS[order]).all()


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_array_file_streams_what_run_writes(tmp_path: Path, batch: int) -> None:
    save_npz(tmp_path / "a.npz", PIXELS)
    images = open_image_set(tmp_path / "a.npz")
    assert (images.count, images.size) == (7, (6, 4))
    parts = list(images.batches(batch))
    assert (np.concatenate(parts) == PIXELS).all()
    assert max(len(part) for part in parts) == min(batch, 7)


def test_compressed_array_with_company_reads_alike(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", arr_0=PIXELS, mu=np.zeros(3), sigma=np.eye(3))
    assert (np.concatenate(list(open_image_set(tmp_path / "a.npz").batches(2))) == PIXELS).all()


def test_grey_and_transparent_images_become_three_channels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "a.png")
    Image.fromarray(np.concatenate([PIXELS[1], PIXELS[1, ..., :1]], axis=-1)).save(tmp_path / "b.png")
    ((grey, transparent),) = open_image_set(tmp_path).batches(2)
    assert (grey == PIXELS[0, ..., :1]).all()
    assert (transparent == PIXELS[1]).all()


def test_pictures_are_eight_bit_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.rot90(PIXELS[0], -1).copy()).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(PIXELS[1, ..., 0].astype(np.uint16) * 257).save(tmp_path / "b.png")
    images = open_image_set(tmp_path)
    assert images.size == (6, 4)
    ((turned, deep),) = images.batches(2)
    assert (turned == PIXELS[0]).all()
    assert (deep == PIXELS[1, ..., :1]).all()


def test_an_animation_is_named(tmp_path: Path) -> None:
    first, second = (Image.fromarray(part) for part in PIXELS[:2])
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    with pytest.raises(EvaluationError, match=r"cannot read the image .*a\.gif: it holds several frames"):
        open_image_set(tmp_path)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    save_all(tmp_path, PIXELS[:2])
    Image.fromarray(PIXELS[0, :5]).save(tmp_path / "z.png")
    with pytest.raises(EvaluationError, match=r"z\.png is 5x4 \(height x width\), .*0\.png is 6x4"):
        open_image_set(tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(EvaluationError, match=r"no images below .*: expected files named \.png, \.jpg"):
        open_image_set(tmp_path)


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no images at"):
        open_image_set(tmp_path / "none")


def test_damaged_image_is_named(tmp_path: Path) -> None:
    save_all(tmp_path, PIXELS[:1])
    broken = tmp_path / "z.png"
    content = (tmp_path / "part-0/0.png").read_bytes()
    broken.write_bytes(content[:60])
    images = open_image_set(tmp_path)  # its header is whole
    with pytest.raises(EvaluationError, match=r"cannot read the image .*z\.png"):
        list(images.batches(5))
    broken.write_bytes(b"no image")
    with pytest.raises(EvaluationError, match=r"cannot read the image .*z\.png"):
        open_image_set(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": PIXELS.astype(np.float32)}, r"is float32 \[7, 6, 4, 3\]: expected arr_0, uint8"),
        ({"arr_0": PIXELS[..., 0]}, r"is uint8 \[7, 6, 4\]"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "in Fortran order"),
        ({"arr_0": PIXELS[:0]}, "holds no images"),
        ({"images": PIXELS, "labels": np.zeros(7)}, "holds images, labels: expected arr_0"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EvaluationError, match=message):
        open_image_set(tmp_path / "a.npz")


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x" * 100)
    with pytest.raises(EvaluationError, match=r"neither a folder nor an \.npz file"):
        open_image_set(tmp_path / "a.npz")


def test_damaged_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, PIXELS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"a\.npz is damaged"):
        list(open_image_set(path).batches(100))
