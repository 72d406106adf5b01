"""Finds the files that a checkpoint consists of: one, the shards beside it, those of an index, or those of a folder."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from arforge.export.file_kind import read_head, text_of
from arforge.runner.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.[a-z]+)")
MAX_INDEX = 1 << 26  # bytes of an index
SNAPSHOTS, MAIN = "snapshots", "refs/main"  # in a model's folder of the hub's cache
BESIDE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt")  # of a trainer, without weights


@dataclass(frozen=True)
class Parts:
    """The files of a checkpoint."""

    files: tuple[Path, ...]
    index: Path | None = None  # that lists them
    places: Mapping[str, str] = field(default_factory=dict)  # the names of files, by the tensors that it says they hold


def files_of(path: Path) -> tuple[Path, ...]:
    return parts_of(path).files


def parts_of(path: Path) -> Parts:
    """The checkpoint at `path`: a file, a part of one in shards, an index of shards, or a folder with one.

    Links are followed, as in the folders of a download cache. Raises CheckpointError if there is no checkpoint,
    where it is one of several, or where a part is missing.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise CheckpointError(f"no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if stat.S_ISDIR(mode):
        return parts_of(one_of(path if (snapshot := snapshot_of(path)) is None else snapshot))
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is not a file, nor a folder: a checkpoint is read more than once")
    match = SHARD.fullmatch(path.name)
    if match:
        count = int(match["parts"])
        names = (f"{match['stem']}-{part:05d}-of-{count:05d}{match['suffix']}" for part in range(1, count + 1))
        return Parts(present(path, names, f"is part {int(match['part'])} of {count}"))
    text = text_of(read_head(path))
    if text is not None and text.lstrip().startswith("{"):
        places = read_index(path)
        if places is not None:
            listed = sorted(set(places.values()))
            return Parts(present(path, listed, f"lists {len(listed)} parts"), path, places)
    return Parts((path,))


def snapshot_of(folder: Path) -> Path | None:
    """Of a model's folder in the hub's cache, the snapshot in it, the main one of several; None for another folder.

    Raises CheckpointError if it has none, or several and no main one.
    """
    if not (folder / SNAPSHOTS).is_dir():
        return None
    found = sorted(entry for entry in (folder / SNAPSHOTS).iterdir() if entry.is_dir())
    if (folder / MAIN).is_file():
        name = (folder / MAIN).read_text("utf-8", "replace").strip()
        found = [entry for entry in found if entry.name == name] or found
    if len(found) == 1:
        return found[0]
    what = f"several snapshots: name one of {', '.join(entry.name for entry in found[:3])}" if found else "no snapshot"
    raise CheckpointError(f"{folder} is a model's folder in a download cache, with {what}")


def present(path: Path, names: Iterable[str], what: str) -> tuple[Path, ...]:
    """Those files beside `path`. Raises CheckpointError if some are missing."""
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing and (path.parent / missing[0]).is_symlink():
        raise CheckpointError(f"{path} {what}, and {missing[0]} is a link to a file that is gone: download it again")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{path} {what}, and {', '.join(missing[:3])}{more} is not beside it: put all parts into one folder"
        )
    return tuple(files)


def read_index(path: Path) -> dict[str, str] | None:
    """The file of each tensor by an index of shards, or None for a JSON file that is no index."""
    if path.stat().st_size > MAX_INDEX:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        return None
    if not weight_map:
        raise CheckpointError(f"{path} is an index of a checkpoint's parts that lists none: download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or PurePath(name).name != name or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{path} is an index of a checkpoint's parts, and lists {name!r}, not a file beside it"
            )
    return weight_map


def one_of(folder: Path) -> Path:
    """The one checkpoint in a folder: its index, the first of its shards, or its only file."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror or error}") from None
    if any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{folder} is a checkpoint of torch.distributed: make it one file first, "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    firsts: dict[str, str] = {}  # by what they belong to
    for name in names:
        match = SHARD.fullmatch(name)
        if name.endswith(SUFFIXES) and name not in BESIDE and (folder / name).is_file():
            firsts.setdefault(f"{match['stem']}{match['suffix']}" if match else name, name)
    for name in names:
        if name.endswith(".index.json"):
            firsts[name.removesuffix(".index.json")] = name
    safe = [name for checkpoint, name in firsts.items() if checkpoint.endswith(".safetensors")]
    found = safe if len(safe) == 1 else list(firsts.values())
    if not found:
        raise CheckpointError(f"no checkpoint at {folder}: the folder has no {', '.join(SUFFIXES)} file")
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds several checkpoints: name one of {', '.join(found)}")
    return folder / found[0]
