"""Prompts as features that somebody else's text encoder gave, or as ids of tokens: arrays, and their `.npy` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import RequestError

MAGIC = b"\x93NUMPY"
TYPES = (np.float16, np.float32, np.float64)
WHOLE = (np.int64, np.int32)  # of ids


def read_features(path: Path, mask: Path | None, slots: int, width: int) -> list[NDArray[np.float32]]:
    """Features of each prompt, float32 [n, width], from a file of floats [prompts, length, width].

    `mask`: a file [prompts, length] of ones, for the n rows of a prompt, and then zeros, as encoders give it; without
    one all rows count. `slots`, `width`: the model's. Raises RequestError for a file that is no such array, and
    whatever `check_features` refuses.
    """
    features = read_array(path)
    if features.ndim != 3 or features.dtype.type not in TYPES:
        raise RequestError(
            f"{path} holds {described(features)}: expected float16, float32 or float64 [prompts, length, {width}]"
        )
    return check_features(without_padding(features, path, mask, "features"), slots, width, str(path))


def read_ids(path: Path, mask: Path | None, slots: int) -> list[NDArray[np.int64]]:
    """Ids of each prompt's tokens, int64 [n], from a file of int64 or int32 [prompts, length], or [length] of one.

    The mask is as of `read_features`.

    Raises RequestError for a file that is no such array, and whatever `check_ids` refuses.
    """
    ids = read_array(path)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.dtype.type not in WHOLE:
        raise RequestError(
            f"{path} holds {described(ids)}: expected int64 or int32 [prompts, length], padded on the right"
        )
    return check_ids(without_padding(ids, path, mask, "ids"), slots, str(path))


def without_padding(array: NDArray[Any], path: Path, mask: Path | None, whose: str) -> list[NDArray[Any]]:
    """Each prompt's part of a file's array [prompts, length, ...]. Raises RequestError for none, or a wrong mask."""
    if len(array) == 0:
        raise RequestError(f"{path} holds no prompts")
    rows = rows_of(mask, array.shape[0], array.shape[1], whose)
    return [one[:count] for one, count in zip(array, rows, strict=True)]


def rows_of(path: Path | None, prompts: int, length: int, whose: str) -> list[int]:
    """How many ones each row of a mask [prompts, length] begins with; all of it where there is none.

    `whose`: what it goes with, for messages. Raises RequestError if others follow, or none.
    """
    if path is None:
        return [length] * prompts
    mask = read_array(path)
    if mask.shape != (prompts, length) or mask.dtype.kind not in "biuf":
        raise RequestError(
            f"{path} holds {described(mask)}: expected the {whose}' mask, ones and zeros [{prompts}, {length}]"
        )
    ones = mask == 1
    if not (ones | (mask == 0)).all():
        raise RequestError(f"{path} holds other numbers than 1, for a token of the prompt, and 0, for padding")
    counts = ones.sum(axis=1)
    for index, (row, count) in enumerate(zip(ones, counts, strict=True)):
        if not row[:count].all():
            raise RequestError(
                f"{path}: row {index} has ones behind zeros: expected the prompt's ones first, then the padding's zeros"
            )
        if count == 0:
            raise RequestError(f"{path}: row {index} is all padding: a prompt has a token at least")
    return [int(count) for count in counts]


def check_features(
    features: Sequence[Any], slots: int, width: int, where: str = "the features"
) -> list[NDArray[np.float32]]:
    """The features of each prompt as float32 [n, width], whole in memory.

    Raises RequestError, which begins with `where`, unless each is an array of floats [n, width] with 1 ≤ n ≤ `slots`
    and finite numbers.
    """
    result = []
    for index, given in enumerate(features):
        name = f"{where}: prompt {index}"
        if not isinstance(given, np.ndarray) or given.dtype.type not in TYPES or given.ndim != 2:
            what = described(given) if isinstance(given, np.ndarray) else type(given).__name__
            raise RequestError(f"{name} is {what}: expected an array of floats [tokens, {width}]")
        if given.shape[1] != width:
            raise RequestError(
                f"{name} has rows of {given.shape[1]} numbers, the model reads {width}: use the text encoder that the "
                "model was trained with"
            )
        if not 1 <= len(given) <= slots:
            raise RequestError(
                f"{name} has {len(given)} rows, the model has room for 1 to {slots}: leave out padding with a mask, or "
                "shorten the prompt"
            )
        with np.errstate(over="ignore"):  # which the next lines refuse
            one = np.array(given, np.float32, order="C")
        if not np.isfinite(one).all():
            raise RequestError(f"{name} holds numbers that are not finite in float32: encode it in float32 or bfloat16")
        result.append(one)
    return result


def check_ids(ids: Sequence[Any], slots: int, where: str = "the ids") -> list[NDArray[np.int64]]:
    """The ids of each prompt's tokens as int64 [n], whole in memory.

    Raises RequestError, which begins with `where`, unless each is an array of int64 or int32 [n] with 1 ≤ n ≤ `slots`,
    none negative: an operator that looks rows up would count those from the end.
    """
    result = []
    for index, given in enumerate(ids):
        name = f"{where}: prompt {index}"
        if not isinstance(given, np.ndarray) or given.dtype.type not in WHOLE or given.ndim != 1:
            what = described(given) if isinstance(given, np.ndarray) else type(given).__name__
            raise RequestError(f"{name} is {what}: expected an array of whole numbers, int64 [tokens]")
        if not 1 <= len(given) <= slots:
            raise RequestError(
                f"{name} has {len(given)} tokens, the model has room for 1 to {slots}: leave out padding with a mask, "
                "or shorten the prompt"
            )
        if given.min() < 0:
            raise RequestError(
                f"{name} holds {given.min()}: ids are 0 or more, as the text encoder's own tokenizer gives them"
            )
        result.append(np.array(given, np.int64, order="C"))
    return result


def read_array(path: Path) -> NDArray[Any]:
    """The array of an `.npy` file, mapped. Raises RequestError for another file, or one that holds Python objects."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
    if head != MAGIC:
        kind = "an archive (.npz): save its one array with numpy.save" if head.startswith(b"PK") else "no .npy file"
        raise RequestError(f"{path} is {kind}")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header that somebody cut may raise whatever Python's own parser does
        raise RequestError(f"{path} is not a whole .npy file of numbers ({error}): save it again") from error
    return array


def described(array: NDArray[Any]) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"
