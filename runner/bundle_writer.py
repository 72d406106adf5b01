"""Writes bundles whole or not at all: everything is built beside the target and renamed into place."""

from __future__ import annotations

import ctypes
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
        if match and not running(int(match[1])):
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
    partial = root / f".{MANIFEST}.{os.getpid()}.partial"
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(root / MANIFEST)
    except OSError as error:
        raise BundleError(f"cannot write {root / MANIFEST}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def add_engine(bundle: Bundle, entry: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write an engine's identity to `entry["path"]` and enter it, in place of one of the same kind.

    The manifest changes last and in one step, so that a cut leaves the bundle as it was.
    """
    path = bundle.path(entry["path"])
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(identity, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    same = ("target", "precision", "device")
    others = [old for old in bundle.manifest["engines"] if any(old[key] != entry[key] for key in same)]
    files = dict(bundle.manifest["files"])
    files[entry["path"]] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_manifest(bundle.root, {**bundle.manifest, "files": files, "engines": [*others, dict(entry)]})
