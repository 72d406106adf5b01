"""Writes bundles whole or not at all: everything is built beside the target and renamed into place."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from arforge.runner.bundle.bundle import Bundle, open_bundle, sha256_of
from arforge.runner.bundle.facts import BuiltEngine, File
from arforge.runner.bundle.manifest import MANIFEST, Manifest
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


@contextmanager
def changing(root: Path) -> Iterator[Bundle]:
    """The bundle, opened, for this process alone to add files to and to enter them (`write_revision`).

    Files below `graphs` and `engines` that the manifest does not list are removed at both ends: what was cut off,
    and what has been replaced. Raises BundleError where another process is at it, or it cannot be written.
    """
    with locked(root):
        bundle = open_bundle(root)
        try:
            remove_unlisted(bundle)
            yield bundle
        except OSError as error:
            raise BundleError(f"cannot change {root}: {error.strerror or error}. It is left as it was") from error
        finally:
            with suppress(OSError):
                remove_unlisted(open_bundle(root))


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other writers off; systems without advisory locks go without."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BundleError(f"another process is changing {root}: wait until it is done") from None
    finally:
        os.close(handle)


def remove_unlisted(bundle: Bundle) -> None:
    for part in ("graphs", "engines"):
        for path in sorted((bundle.root / part).rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it has files
                    path.rmdir()
            elif path.relative_to(bundle.root).as_posix() not in bundle.files:
                path.unlink(missing_ok=True)


def write_revision(bundle: Bundle, new: Iterable[Path], gone: Container[str] = ()) -> None:
    """Replace the manifest by `bundle`'s in one step, with the facts of `new` files and without `gone` ones."""
    files = {path: facts for path, facts in bundle.files.items() if path not in gone}
    for path in new:
        files[path.relative_to(bundle.root).as_posix()] = facts_of(path)
    write_manifest(bundle.root, replace(bundle, files=files))


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


def file_facts(root: Path) -> dict[str, File]:
    """Size and sha256 of every file below `root` but the manifest, by its relative path."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(root).as_posix(): facts_of(path) for path in paths}


def facts_of(path: Path) -> File:
    return File(path.stat().st_size, sha256_of(path))


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step."""
    write_json(root / MANIFEST, manifest.to_json())


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file in one step. Raises BundleError where it cannot be written, ValueError for NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


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


def write_hashed(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write `folder`/`name`-HASH`suffix`: a name of its own for each content, so that no listed file changes."""
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def add_engine(
    bundle: Bundle,
    kind: BuiltEngine,
    identity: dict[str, Any],
    new: Iterable[Path] = (),
    gone: Iterable[str] = (),
) -> None:
    """Write an engine's identity into the folder `kind.path` and enter it, in place of one of the same kind.

    `new`: further files, written already; `gone`: listed ones outside that folder that go. Names hold hashes, and
    the manifest changes in one step between writing the new files and removing the old ones, so that a cut leaves
    the bundle with either engine.
    """
    text = json.dumps(identity, indent=1, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = f"{kind.path}/engine-{digest[:12]}.json"
    write_text(bundle.path(path), text)
    others = tuple(engine for engine in bundle.engines if engine.key != kind.key)
    added = [bundle.path(path), *new]
    names = {file.relative_to(bundle.root).as_posix() for file in added}
    inside = (name for name in bundle.files if name.startswith(f"{kind.path}/"))
    stale = {*gone, *inside} - names
    write_revision(replace(bundle, engines=(*others, replace(kind, path=path))), added, stale)
    for name in stale:
        bundle.path(name).unlink(missing_ok=True)
