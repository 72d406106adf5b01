"""Reads checkpoints as their authors published them, tensor by tensor, and never executes what they contain."""

from __future__ import annotations

import argparse
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arforge.runner.errors import CheckpointError

WRAPPERS = ("model", "module", "state_dict")
# A key that only this family's checkpoints have; the first match wins.
FAMILIES = {
    "par": "spe_tok_embeddings",
    "arpg": "layers.self_dec.0.",
    "llamagen (text-conditional)": "cls_embedding.cap_proj.",
    "llamagen": "cls_embedding.embedding_table.weight",
    "VQ tokenizer": "quantize.embedding.weight",
}
# What torch's readers raise for files that somebody cut or made up.
UNREADABLE = (
    RuntimeError, OSError, EOFError, MemoryError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError, NotImplementedError, struct.error,
)  # fmt: skip
IGNORED = ("freqs_cis", "codebook_used")  # tables that the authors recompute, and training statistics


class Checkpoint(Protocol):
    """Named tensors of a file."""

    @property
    def path(self) -> Path: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def tensor(self, name: str) -> Tensor: ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` file or a torch `.pt`; tensors are mapped from the file, not loaded.

    Raises CheckpointError where the file is missing, truncated, not a checkpoint, or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: download it again")
    return SafetensorsCheckpoint(path) if path.suffix == ".safetensors" else TorchCheckpoint(path)


class SafetensorsCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            names = self._file.keys()
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, *UNREADABLE) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again") from error

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class TorchCheckpoint:
    """A torch.save file; weights may stand at the top or under "model", "module" or "state_dict"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = unwrap(load_weights(path), path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def load_weights(path: Path) -> Any:
    # The authors' training checkpoints carry their command line as a Namespace, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on pickles is not for the user of a checkpoint
        try:
            try:
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds more than tensors, and arforge does not execute what a file contains. "
                "Save its state_dict alone: torch.save({'model': model.state_dict()}, file). "
                f"(torch: {str(error).splitlines()[0]})"
            ) from error
        except UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is not a whole torch checkpoint ({reason}): download it again") from error


def unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a table of tensors")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: its keys are {', '.join(map(str, list(loaded)[:5]))}")
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path}: tensor {name} is not a plain one of real numbers: save dense weights")
    return tensors


def check_shapes(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], family: str) -> None:
    """Raise CheckpointError unless the checkpoint has exactly these tensors, of these shapes."""
    found = {name: shape for name, shape in checkpoint.shapes.items() if name not in ignored(checkpoint)}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        parts = [f"missing {some(missing)}" if missing else "", f"unexpected {some(unexpected)}" if unexpected else ""]
        raise CheckpointError(
            f"{checkpoint.path} is not a {family} checkpoint of these dimensions: "
            f"{'; '.join(part for part in parts if part)}. {looks_like(checkpoint, family)}"
        )
    wrong = [name for name in expected if found[name] != expected[name]]
    if wrong:
        lines = [f"{name} is {list(found[name])}, expected {list(expected[name])}" for name in wrong[:3]]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{checkpoint.path} has other dimensions: {'; '.join(lines)}{more}")


def ignored(checkpoint: Checkpoint) -> set[str]:
    return {name for name in checkpoint.shapes if name.rsplit(".", 1)[-1] in IGNORED}


def looks_like(checkpoint: Checkpoint, family: str) -> str:
    """A sentence on which family the checkpoint seems to be of."""
    for known, sign in FAMILIES.items():
        if any(sign in name for name in checkpoint.shapes):
            if known == family:
                return "It is of that family: check the dimensions (--variant or --config)."
            return f"It looks like a {known} checkpoint."
    return "It looks like none of the families that arforge knows."


def some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
