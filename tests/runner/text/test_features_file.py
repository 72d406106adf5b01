from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from arforge.runner import RequestError
from arforge.runner.text.features_file import check_features, check_ids, read_features, read_ids

SLOTS, WIDTH = 6, 4
MASK = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]


def features() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(3, 5, WIDTH)).astype(np.float32)


def save(folder: Path, name: str, array: Any) -> Path:
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mask_kind", [np.int64, np.bool_, np.uint8, np.float32])
def test_the_rows_of_each_prompt_are_read_without_its_padding(tmp_path: Path, kind: type, mask_kind: type) -> None:
    array = features().astype(kind)
    array[1, 1:] = np.nan  # padding may be anything
    path, mask = save(tmp_path, "f.npy", array), save(tmp_path, "m.npy", np.array(MASK, mask_kind))
    found = read_features(path, mask, SLOTS, WIDTH)
    assert [one.shape for one in found] == [(3, WIDTH), (1, WIDTH), (5, WIDTH)]
    for one, row, count in zip(found, array, (3, 1, 5), strict=True):
        assert one.dtype == np.float32
        assert one.flags.c_contiguous
        assert not isinstance(one, np.memmap)
        np.testing.assert_array_equal(one, row[:count].astype(np.float32))


def test_without_a_mask_all_rows_are_the_prompts(tmp_path: Path) -> None:
    for order in ("C", "F"):
        path = save(tmp_path, "f.npy", np.asarray(features(), order=order))
        found = read_features(path, None, SLOTS, WIDTH)
        np.testing.assert_array_equal(np.stack(found), features())


def test_padding_may_reach_beyond_the_models_room(tmp_path: Path) -> None:
    array, mask = np.ones((1, 50, WIDTH), np.float32), np.arange(50)[None] < SLOTS
    found = read_features(save(tmp_path, "f.npy", array), save(tmp_path, "m.npy", mask), SLOTS, WIDTH)
    assert found[0].shape == (SLOTS, WIDTH)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, WIDTH)), r"holds float64 \[5, 4\]: expected float16, float32 or float64 \[prompts, length, 4\]"),
        (np.zeros((1, 5, WIDTH), np.int8), r"holds int8 \[1, 5, 4\]: expected float16"),
        (np.zeros((1, 5, WIDTH), "V2"), r"holds \|V2 \[1, 5, 4\]: expected float16"),
        (np.zeros((1, 5, WIDTH), complex), r"holds complex128 \[1, 5, 4\]: expected float16"),
        (np.zeros((0, 5, WIDTH)), "holds no prompts"),
        (np.zeros((1, 0, WIDTH)), "f.npy: prompt 0 has 0 rows, the model has room for 1 to 6: leave out padding"),
        (np.zeros((1, 5, 3)), "f.npy: prompt 0 has rows of 3 numbers, the model reads 4: use the text encoder"),
        (np.zeros((1, 7, WIDTH)), "f.npy: prompt 0 has 7 rows, the model has room for 1 to 6: leave out padding"),
        (np.full((1, 5, WIDTH), np.inf), "prompt 0 holds numbers that are not finite in float32"),
        (np.full((1, 5, WIDTH), 1e300), "prompt 0 holds numbers that are not finite in float32"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_features(save(tmp_path, "f.npy", array), None, SLOTS, WIDTH)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:2], r"m.npy holds int64 \[2, 5\]: expected the features' mask, ones and zeros \[3, 5\]"),
        (np.ones((3, 4), int), r"holds int64 \[3, 4\]: expected the features' mask"),
        (np.ones((3, 5), "U1"), r"holds <U1 \[3, 5\]: expected the features' mask"),
        (2 * np.ones((3, 5), int), "holds other numbers than 1, for a token of the prompt, and 0, for padding"),
        (np.full((3, 5), np.nan), "holds other numbers than 1"),
        ([[1, 0, 1, 0, 0], *MASK[1:]], "row 0 has ones behind zeros: expected the prompt's ones first, then the"),
        ([MASK[0], [0, 0, 0, 1, 1], MASK[2]], "row 1 has ones behind zeros"),
        ([*MASK[:2], [0] * 5], "row 2 is all padding: a prompt has a token at least"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, mask: Any, message: str) -> None:
    paths = save(tmp_path, "f.npy", features()), save(tmp_path, "m.npy", np.array(mask))
    with pytest.raises(RequestError, match=message):
        read_features(*paths, SLOTS, WIDTH)


def test_other_files_are_called_what_they_are(tmp_path: Path) -> None:
    whole, path = io.BytesIO(), tmp_path / "f.npy"
    np.save(whole, features())
    archive = io.BytesIO()
    np.savez(archive, features())
    objects = io.BytesIO()
    np.save(objects, np.array([{}, None], object), allow_pickle=True)
    header = b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    for content, message in {
        whole.getvalue()[:-7]: "is not a whole .npy file of numbers",
        whole.getvalue()[:50]: "is not a whole .npy file of numbers",
        header % b"9,9,9999999999999": "is not a whole .npy file of numbers",
        objects.getvalue(): "is not a whole .npy file of numbers",
        archive.getvalue(): r"is an archive \(.npz\): save its one array with numpy.save",
        pickle.dumps(features()): "is no .npy file",
        b"": "is no .npy file",
    }.items():
        path.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            read_features(path, None, SLOTS, WIDTH)
    with pytest.raises(RequestError, match="cannot read .*gone.npy: No such file"):
        read_features(tmp_path / "gone.npy", None, SLOTS, WIDTH)
    with pytest.raises(RequestError, match="cannot read .*: Is a directory"):
        read_features(tmp_path, None, SLOTS, WIDTH)


def test_arrays_of_callers_are_checked_too() -> None:
    given = [np.ones((2, WIDTH), np.float16), np.asfortranarray(features()[0])]
    found = check_features(given, SLOTS, WIDTH)
    assert [(one.dtype, one.flags.c_contiguous) for one in found] == 2 * [(np.dtype(np.float32), True)]
    found[1][:] = 0
    assert given[1].any()  # the caller's stay
    for bad, message in (
        ([[1.0]], r"the features: prompt 0 is list: expected an array of floats \[tokens, 4\]"),
        ([given[0], features()], r"the features: prompt 1 is float32 \[3, 5, 4\]: expected an array"),
        ([np.ones((2, WIDTH), int)], r"the features: prompt 0 is int64 \[2, 4\]: expected an array"),
    ):
        with pytest.raises(RequestError, match=message):
            check_features(bad, SLOTS, WIDTH)


@pytest.mark.parametrize("kind", [np.int64, np.int32, ">i4"])
def test_the_ids_of_each_prompt_are_read_without_its_padding(tmp_path: Path, kind: Any) -> None:
    array = np.arange(15).reshape(3, 5).astype(kind)
    array[1, 1:] = -100  # padding may be anything
    path, mask = save(tmp_path, "i.npy", array), save(tmp_path, "m.npy", np.array(MASK))
    found = read_ids(path, mask, SLOTS)
    assert [(one.dtype, isinstance(one, np.memmap)) for one in found] == 3 * [(np.dtype(np.int64), False)]
    assert [one.tolist() for one in found] == [[0, 1, 2], [5], [10, 11, 12, 13, 14]]
    np.testing.assert_array_equal(read_ids(save(tmp_path, "i.npy", np.array([[4, 0]])), None, SLOTS), [[4, 0]])


@pytest.mark.parametrize(
    ("array", "mask", "message"),
    [
        (
            np.zeros((1, 1, 5), int),
            None,
            r"i.npy holds int64 \[1, 1, 5\]: expected int64 or int32 \[prompts, length\], padded on the",
        ),
        (np.zeros(7, int), None, "i.npy: prompt 0 has 7 tokens, the model has room for 1 to 6: leave out padding"),
        (np.zeros((1, 5)), None, r"holds float64 \[1, 5\]: expected int64 or int32"),
        (np.zeros((1, 5), np.uint64), None, r"holds uint64 \[1, 5\]: expected int64 or int32"),
        (np.zeros((0, 5), int), None, "i.npy holds no prompts"),
        (np.zeros((1, 0), int), None, "i.npy: prompt 0 has 0 tokens, the model has room for 1 to 6: leave out padding"),
        (np.zeros((1, 7), int), None, "i.npy: prompt 0 has 7 tokens, the model has room for 1 to 6: leave out padding"),
        (np.array([[3, -1]]), None, "i.npy: prompt 0 holds -1: ids are 0 or more"),
        (np.zeros((1, 5), int), MASK, r"m.npy holds int64 \[3, 5\]: expected the ids' mask, ones and zeros \[1, 5\]"),
        (np.zeros((1, 2), int), [[0, 1]], "row 0 has ones behind zeros"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path: Path, array: NDArray[Any], mask: Any, message: str) -> None:
    path = None if mask is None else save(tmp_path, "m.npy", np.array(mask))
    with pytest.raises(RequestError, match=message):
        read_ids(save(tmp_path, "i.npy", array), path, SLOTS)
    for bad in ([1, 2], np.array(3), np.array([[1, 2]]), np.array([1.0]), np.array([True])):
        with pytest.raises(RequestError, match=r"the ids: prompt 0 is .*: expected an array of whole numbers, int64"):
            check_ids([bad], SLOTS)
