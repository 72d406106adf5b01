from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from arforge.runner import RequestError
from arforge.runner.images import GAP, grid, save_npz, save_png, save_tokens, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pictures(count: int, height: int = 4, width: int = 3) -> np.ndarray:
    values = np.arange(count * height * width * 3) % 250
    return values.astype(np.uint8).reshape(count, height, width, 3)


@pytest.mark.parametrize(
    ("count", "columns", "layout"),
    [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (5, 2, (3, 2)), (3, 5, (1, 5)), (10, None, (3, 4))],
)
def test_the_grid_places_every_image_and_leaves_the_rest_white(
    count: int, columns: int | None, layout: tuple[int, int]
) -> None:
    images = pictures(count)
    page = grid(images, columns)
    rows, across = layout
    assert page.dtype == np.uint8
    assert page.shape == (rows * 4 + (rows - 1) * GAP, across * 3 + (across - 1) * GAP, 3)
    covered = np.zeros(page.shape[:2], dtype=bool)
    for index, image in enumerate(images):
        top, left = index // across * (4 + GAP), index % across * (3 + GAP)
        np.testing.assert_array_equal(page[top : top + 4, left : left + 3], image)
        covered[top : top + 4, left : left + 3] = True
    assert (page[~covered] == 255).all()


def test_a_png_holds_the_grid_and_zooms_whole_pixels(tmp_path: Path) -> None:
    images = pictures(3)
    save_png(tmp_path / "plain.png", images, columns=3)
    save_png(tmp_path / "large.png", images, columns=3, zoom=4)
    plain, large = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "large.png"))
    np.testing.assert_array_equal(plain, grid(images, 3))
    np.testing.assert_array_equal(large[::4, ::4], plain)
    np.testing.assert_array_equal(large[3::4, 3::4], plain)
    assert names(tmp_path) == ["large.png", "plain.png"]


def test_an_npz_is_what_fid_evaluators_read(tmp_path: Path) -> None:
    images = pictures(7)
    save_npz(tmp_path / "samples.npz", images)
    with np.load(tmp_path / "samples.npz") as loaded:
        assert loaded.files == ["arr_0"]
        assert loaded["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(loaded["arr_0"], images)


def test_tokens_are_int64_in_an_npy(tmp_path: Path) -> None:
    tokens = np.arange(12).reshape(3, 4)
    save_tokens(tmp_path / "tokens.npy", tokens)
    loaded = np.load(tmp_path / "tokens.npy")
    assert loaded.dtype == np.int64
    np.testing.assert_array_equal(loaded, tokens)


def test_names_are_kept_as_given(tmp_path: Path) -> None:
    save_npz(tmp_path / "samples", pictures(1))
    save_tokens(tmp_path / "tokens", np.zeros((1, 1), dtype=np.int64))
    assert names(tmp_path) == ["samples", "tokens"]


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "No space left on device"), RequestError), (ValueError("bad"), ValueError)]
)
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise error

    with pytest.raises(raised, match="No space left on device|bad"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["samples.npz"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot write .*nowhere/x.npy: No such file or directory"):
        save_tokens(tmp_path / "nowhere" / "x.npy", np.zeros((1, 1), dtype=np.int64))


def test_a_target_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match="cannot write .*folder"):
        save_png(tmp_path / "folder", pictures(1))
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_an_error_of_the_request(path: str) -> None:
    with pytest.raises(RequestError, match="cannot write"):
        save_png(Path(path), pictures(1))
