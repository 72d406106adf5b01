"""Reads the tensors of one file, `.safetensors` or `torch.save`'s, and never executes what it contains.

Tensors are read by rows when they are asked for. Nothing stays mapped: what is read from a mapped file counts as this
process's memory for as long as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arforge.export.file_kind import format_of
from arforge.export.rows import Rows
from arforge.runner.errors import CheckpointError

# What torch's readers raise for files that somebody cut or made up.
UNREADABLE = (
    RuntimeError, OSError, EOFError, MemoryError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError, NotImplementedError, struct.error,
)  # fmt: skip
SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


REMAP = 1 << 27  # bytes read of a mapped file


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None for whole numbers and truth values, which are no weights
    read: Callable[[int, int], Tensor]  # rows [first, end); of a number, itself
    plain: bool = True  # dense, real and in memory

    @property
    def rows(self) -> Rows:
        assert self.dtype is not None
        return Rows(self.shape, self.dtype, self.read)


def read_file(path: Path) -> Any:
    """What a file holds: tables by name, nested as in the file, of StoredTensor and whatever else there is.

    Raises CheckpointError if the file is not whole, is something else than a checkpoint, or holds code.
    """
    if format_of(path) == "safetensors":
        return read_safetensors(path)
    file = TorchFile(path)
    return stored(file, file.content)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt"):  # which looks at the header, and whether the file is as long as it says
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        return {name: entry(path, 8 + length, **facts) for name, facts in header.items() if name != "__metadata__"}
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again") from error


def entry(path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
    """A tensor of a safetensors file whose data begin at byte `start`."""
    kind = SAFETENSORS_TYPES.get(dtype)
    if kind is None:
        return StoredTensor(tuple(shape), None, no_weights)
    known, row = kind, math.prod(shape[1:]) * kind.itemsize

    def read(first: int, end: int) -> Tensor:
        found = np.fromfile(path, np.uint8, (end - first) * row, offset=start + data_offsets[0] + first * row)
        if found.size != (end - first) * row:
            raise CheckpointError(f"{path} has become shorter while it was read: download it again")
        return torch.from_numpy(found).view(known).reshape([end - first, *shape[1:]] if shape else [])

    return StoredTensor(tuple(shape), kind, read)


def no_weights(first: int, end: int) -> Tensor:
    raise AssertionError(f"rows [{first}, {end}) of a tensor that holds no weights")


class TorchFile:
    """A file of `torch.save`, mapped anew after every so many bytes that were read of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.taken = path, load_weights(path), 0

    def read(self, keys: tuple[Any, ...], first: int, end: int) -> Tensor:
        """Rows of the tensor that these keys lead to, in memory of their own."""
        if self.taken > REMAP:
            self.content, self.taken = load_weights(self.path), 0
        tensor = self.content
        for key in keys:
            tensor = tensor[key]
        assert isinstance(tensor, Tensor)
        found = (tensor[first:end] if tensor.dim() else tensor).detach().clone()
        self.taken += found.nbytes
        return found


def load_weights(path: Path) -> Any:
    # The authors' training checkpoints carry their command line as a Namespace, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on pickles is not for the user of a checkpoint
        try:
            try:
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except (RuntimeError, SafetensorError) as error:
                if "mmap" not in str(error) and path.suffix != ".safetensors":
                    raise
                # The format before torch 1.6; or torch went by the suffix, which a file without a name has not.
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds more than tensors ({refused(str(error))}), and arforge does not execute what a file "
                "contains. Save its state_dict alone: torch.save({'model': model.state_dict()}, file)"
            ) from error
        except UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is not a whole torch checkpoint ({reason}): download it again") from error


def refused(message: str) -> str:
    """What torch would not unpickle, without its advice to unpickle it all the same."""
    name = re.search(r"GLOBAL (\S+)|got <class '([^']+)'>", message)
    if name:
        return f"an object made by {name[1] or name[2]}"
    reason = re.search(r"WeightsUnpickler error: ([^\n.]+)", message)
    return reason[1] if reason and "safe_globals" not in reason[1] else "something that torch does not read"


def stored(file: TorchFile, value: Any, keys: tuple[Any, ...] = (), depth: int = 8) -> Any:
    """`value`, which these keys lead to, with its tensors, in tables at most so deep, as StoredTensor."""
    if isinstance(value, dict) and depth:
        return {str(key): stored(file, item, (*keys, key), depth - 1) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    plain = value.device.type == "cpu" and value.layout == torch.strided
    plain = plain and not value.is_quantized and not value.is_complex()
    dtype = value.dtype if value.is_floating_point() else None
    return StoredTensor(tuple(value.shape), dtype, lambda first, end: file.read(keys, first, end), plain)
