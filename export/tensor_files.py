"""Reads the tensors of one file, `.safetensors` or `torch.save`'s, and never executes what it contains.

Tensors are mapped from the file, not loaded.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arforge.export.file_kind import format_of
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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None for whole numbers and truth values, which are no weights
    load: Callable[[], Tensor]
    plain: bool = True  # dense, real and in memory


def read_file(path: Path) -> Any:
    """What a file holds: tables by name, nested as in the file, of StoredTensor and whatever else there is.

    Raises CheckpointError if the file is not whole, is something else than a checkpoint, or holds code.
    """
    if format_of(path) == "safetensors":
        return read_safetensors(path)
    return stored(load_weights(path))


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            entry = file.get_slice(name)
            dtype = SAFETENSORS_TYPES.get(entry.get_dtype())
            tensors[name] = StoredTensor(tuple(entry.get_shape()), dtype, partial(file.get_tensor, name))
        return tensors
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again") from error


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


def stored(value: Any, depth: int = 8) -> Any:
    """`value` with its tensors, in tables at most so deep, as StoredTensor."""
    if isinstance(value, dict) and depth:
        return {str(key): stored(item, depth - 1) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    plain = value.device.type == "cpu" and value.layout == torch.strided
    plain = plain and not value.is_quantized and not value.is_complex()
    return StoredTensor(tuple(value.shape), value.dtype if value.is_floating_point() else None, lambda: value, plain)
