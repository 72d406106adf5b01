"""Opens checkpoints as their authors published them, tensor by tensor, and never executes what they contain.

Files differ in how they wrap the same weights: in tables ("model", "ema"), under prefixes ("module.", "_orig_mod."),
in shards, with caches and tables beside them. What was taken and what was left out stands in `Checkpoint.notes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from arforge.export.checkpoint_files import Parts, parts_of
from arforge.export.rows import Rows
from arforge.export.tensor_files import StoredTensor, read_file
from arforge.runner.errors import CheckpointError

WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
TABLES = (*WRAPPERS, *AVERAGED)
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # into names, by torch's own wrappers
# What is not learned: rotary and mask tables that are computed anew, caches of a run, statistics of training.
COMPUTED = (
    "freqs_cis", "inv_freq", "cos_cached", "sin_cached", "causal_mask", "kv_cache", "k_cache", "v_cache",
    "codebook_used",
)  # fmt: skip

Table = dict[str, StoredTensor]


@dataclass(frozen=True)
class Checkpoint:
    """Named weights of a file or of several."""

    path: Path  # as it was named
    files: tuple[Path, ...]
    table: str  # of the file, that the weights are; "" where they stand at its top
    tensors: Mapping[str, StoredTensor]
    whole_numbers: tuple[str, ...]  # names of tensors of them, which are no weights
    notes: tuple[str, ...]  # on what was chosen and what was left out, a sentence each

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor in memory: for small ones."""
        return self.rows(name).tensor()

    def rows(self, name: str) -> Rows:
        """A tensor that is read in blocks of its rows."""
        return self.tensors[name].rows

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """The type that most of the weights' bytes are of; larger ones count as fp32, smaller ones as fp16."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            assert tensor.dtype is not None
            sizes[tensor.dtype] += math.prod(tensor.shape) * tensor.dtype.itemsize
        dtype = sizes.most_common(1)[0][0]
        return "bf16" if dtype == torch.bfloat16 else "fp16" if dtype.itemsize <= 2 else "fp32"


def open_checkpoint(
    path: Path, table: str | None = None, *, averaged: bool = False, option: str = "--weights"
) -> Checkpoint:
    """Open the checkpoint of a file, of shards or of a folder; tensors are read when they are asked for.

    `table`: which weights to take where a file holds several, such as "ema"; without it the trained ones, or the
    `averaged` ones, where it has both. `option` sets it on the command line, for messages. Raises CheckpointError
    where a file is missing, truncated, not a checkpoint, or holds code, or where there is no such table.
    """
    parts = parts_of(path)
    content: dict[str, Any] = {}
    for file in parts.files:
        part = read_file(file)
        if not isinstance(part, dict):
            kind = "Tensor" if isinstance(part, StoredTensor) else type(part).__name__
            raise CheckpointError(f"{file} holds a {kind}, not a table of tensors")
        check_index(parts, file, part)
        merge(content, part, file)
    tables = tables_of(content)
    if not tables:
        raise CheckpointError(f"{path} holds no tensors: its keys are {', '.join(list(content)[:5])}")
    name = choose(tables, table, averaged, path)
    taken, prefix = without_prefix({plain_name(key): tensor for key, tensor in tables[name].items()})
    for key, tensor in taken.items():
        if not tensor.plain:
            raise CheckpointError(f"{path}: tensor {key} is not a plain one of real numbers: save dense weights")
    computed = [key for key in taken if is_computed(key)]
    whole = [key for key, tensor in taken.items() if tensor.dtype is None and key not in computed]
    weights = {key: tensor for key, tensor in taken.items() if key not in {*computed, *whole}}
    if not weights:
        raise CheckpointError(f"{path} holds no weights: its tensors are {some(list(taken))}")
    files = parts.files
    notes = [
        f"read its {len(files)} parts, {files[0].name} to {files[-1].name}" if len(files) > 1 else "",
        note_on_choice(list(tables), name, option),
        f"took the prefix {prefix!r} off all names" if prefix else "",
        f"left out what is computed anew: {some(computed)}" if computed else "",
        f"left out whole numbers, which are no weights: {some(whole)}" if whole else "",
    ]
    return Checkpoint(path, files, name, weights, tuple(whole), tuple(note for note in notes if note))


def check_index(parts: Parts, file: Path, part: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the index of the parts says of a file that it holds a tensor which it does not hold."""
    missing = [name for name, place in parts.places.items() if place == file.name and name not in part]
    if missing:
        raise CheckpointError(
            f"{parts.index} lists {some(missing)} in {file.name}, which does not hold it: the parts are not of one "
            "checkpoint, or not whole. Download it again"
        )


def merge(content: dict[str, Any], part: Mapping[str, Any], file: Path) -> None:
    """Add the tables of one more file. Raises CheckpointError for a tensor that another has."""
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            merge(content[key], value, file)
        elif isinstance(value, StoredTensor) and key in content:
            raise CheckpointError(f"{file} holds {key}, as another part does: use the parts of one checkpoint alone")
        else:
            content[key] = value


def tables_of(content: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of tensors in a file by their names, "" for one at the top, which counts where there is no other."""
    found: dict[str, Table] = {}
    for key in TABLES:
        if isinstance(content.get(key), dict):
            for inner, table in tables_of(content[key]).items():
                found[f"{key}.{inner}" if inner else key] = table
    top = {key: value for key, value in content.items() if isinstance(value, StoredTensor)}
    return found or (split(top) if top else {})


def split(table: Table) -> dict[str, Table]:
    """A table whose names begin with those of several tables, as each of these; else the table, as ""."""
    inside, _ = without_prefix(table)
    firsts = {key.partition(".")[0] for key in inside}
    if not all("." in key for key in inside) or not all(first in TABLES for first in firsts):
        return {"": table}
    return {
        first: {key.removeprefix(f"{first}."): tensor for key, tensor in inside.items() if key.startswith(f"{first}.")}
        for first in TABLES
        if first in firsts
    }


def choose(tables: Mapping[str, Table], wanted: str | None, averaged: bool, path: Path) -> str:
    """The name of the table to take. Raises CheckpointError if the wanted one is not there."""
    if wanted is None:
        return min(tables, key=lambda name: is_averaged(name) != averaged)  # in order, as TABLES stands
    for name in tables:
        if wanted == name or wanted in name.split("."):
            return name
    held = ", ".join(repr(name) for name in tables if name) or "one set, without a name"
    raise CheckpointError(f"{path} has no weights {wanted!r}: it has {held}")


def note_on_choice(names: list[str], taken: str, option: str) -> str:
    others = [name for name in names if name != taken]
    if others:
        return f"took its weights {taken!r}; {option} {others[0]} takes {others[0]!r}"
    return f"took its weights {taken!r}, averaged in training, since it has no others" if is_averaged(taken) else ""


def is_averaged(name: str) -> bool:
    return any(part in AVERAGED for part in name.split("."))


def plain_name(name: str) -> str:
    """A tensor's name without what torch's wrappers of modules put into it."""
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def without_prefix(table: Table) -> tuple[Table, str]:
    """The table without the names of wrappers that all its tensors' names begin with, and that prefix."""
    prefix = ""
    while True:
        firsts = {key[len(prefix) :].partition(".")[0] for key in table}
        if len(firsts) != 1 or not firsts <= {*TABLES, *INSERTED}:
            return {key.removeprefix(prefix): tensor for key, tensor in table.items()}, prefix
        prefix += f"{firsts.pop()}."


def is_computed(name: str) -> bool:
    return any(part in COMPUTED for part in name.split("."))


def some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
