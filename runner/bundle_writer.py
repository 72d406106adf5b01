"""Writes bundles whole or not at all: everything is built beside the target and renamed into place."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arforge.runner.bundle import MANIFEST, Bundle, sha256_of
from arforge.runner.errors import BundleError

RENAME_EXCHANGE = 2
AT_FDCWD = -100


@contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory beside `target` that takes its place when the block ends without an error.

    Until then `target` stays as it was, whatever happens. Raises BundleError where it exists and `overwrite` is not
    set, or where it is something other than a bundle.
    """
    if target.exists() or target.is_symlink():
        if not (target.is_dir() and (target / MANIFEST).is_file()) or target.is_symlink():
            raise BundleError(f"{target} exists and is not a bundle: choose another output")
        if not overwrite:
            raise BundleError(f"{target} exists: choose another output, or pass --overwrite")
    stage = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        stage.mkdir()
        yield stage
        if not target.exists():
            stage.rename(target)
        elif overwrite:
            exchange(stage, target)
        else:
            raise BundleError(f"{target} has appeared meanwhile: choose another output, or pass --overwrite")
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror or error}. It is left as it was") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def sweep(target: Path) -> None:
    """Remove what writers of `target` that no longer run have left beside it."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(\d+)\.partial")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not running(int(match[1]))):  # process ids come round
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step where the system can (Linux), else in two."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    aside = new.with_name(new.name + ".old")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def file_facts(root: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `root` but the manifest, by its relative path."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
    }


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step."""
    write_text(root / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step. Raises BundleError where it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def add_engine(bundle: Bundle, entry: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write an engine's identity into the folder `entry["path"]` and enter it, in place of one of the same kind.

    The identity's name holds its hash, and the manifest changes in one step between writing the new identity and
    removing the old one, so that a cut leaves the bundle with either.
    """
    text = json.dumps(identity, indent=1, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = f"{entry['path']}/engine-{digest[:12]}.json"
    write_text(bundle.path(path), text)
    same = ("target", "precision", "device")
    replaced = [old for old in bundle.manifest["engines"] if all(old[key] == entry[key] for key in same)]
    engines = [old for old in bundle.manifest["engines"] if old not in replaced]
    stale = {old["path"] for old in replaced} - {path}
    files = {name: facts for name, facts in bundle.manifest["files"].items() if name not in stale}
    files[path] = {"bytes": len(text.encode()), "sha256": digest}
    manifest = {**bundle.manifest, "files": files, "engines": [*engines, {**entry, "path": path}]}
    write_manifest(bundle.root, manifest)
    for old_path in stale:
        bundle.path(old_path).unlink(missing_ok=True)
