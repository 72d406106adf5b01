"""Writes bundles whole or not at all: everything is built beside the target and renamed into place."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from arforge.runner.bundle.bundle import Bundle, open_bundle
from arforge.runner.bundle.facts import BuiltEngine, File
from arforge.runner.bundle.files import require_utf8, sha256_of
from arforge.runner.bundle.lock import FolderLock
from arforge.runner.bundle.manifest import MANIFEST, Manifest
from arforge.runner.bundle.names import foreign, is_added, is_folder
from arforge.runner.errors import ArforgeError, BundleError

RENAME_EXCHANGE = 2
AT_FDCWD = -100
SHOWN = 3  # foreign files that a message names


@contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory beside `target` that takes its place when the block ends without an error.

    Until then `target` stays as it was, whatever happens. Raises BundleError if it exists and `overwrite` is not
    set, where it is something other than a bundle, or holds files that arforge did not write, or is being changed.
    """
    require_utf8(target)
    if target.exists() or target.is_symlink():
        if not (target.is_dir() and (target / MANIFEST).is_file()) or target.is_symlink():
            raise BundleError(f"{target} exists and is not a bundle: choose another output")
        if not overwrite:
            raise BundleError(f"{target} exists: choose another output, or pass --overwrite")
        refuse_foreign(target)
    with beside(target) as stage:
        yield stage
        if not target.exists():
            stage.rename(target)
        elif overwrite:
            with locked(target):
                refuse_foreign(target)
                exchange(stage, target)
        else:
            raise BundleError(f"{target} has appeared meanwhile: choose another output, or pass --overwrite")


@contextmanager
def remade(bundle: Bundle) -> Iterator[Path]:
    """Within `changing`: a new directory that takes the bundle's place when the block ends without an error.

    Files that arforge did not write move along.
    """
    root = Path(os.path.realpath(bundle.root))
    with beside(root) as stage:
        yield stage
        for path in foreign(root, bundle.files):
            link(root / path, stage / path)
        exchange(stage, root)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A directory beside `target` that no other writer sweeps away, removed at the end with what is in it."""
    stage, left = None, list[Path]()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        left = sweep(target)
        stage, lock = new_stage(target)
        with lock:
            yield stage
    except OSError as error:
        raise BundleError(
            f"cannot write {target}: {error.strerror or error}. It is left as it was{hint_of(left)}"
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def new_stage(target: Path) -> tuple[Path, FolderLock]:
    while True:
        stage = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
        stage.mkdir()
        try:
            lock = FolderLock(stage)
        except (BlockingIOError, FileNotFoundError):  # taken for abandoned, in the moment before it was locked
            continue
        if lock.is_on(stage):
            return stage, lock
        lock.close()


def sweep(target: Path) -> list[Path]:
    """Remove what writers of `target` that no longer run have left beside it: what can be locked.

    Returns what may be such, on a file system without locks.
    """
    left = []
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]+\.(partial|replaced)")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        try:
            lock = FolderLock(path)
        except OSError:  # a living writer's, or not this user's
            continue
        with lock:
            if not lock.held:
                left.append(path)
            elif match[1] == "replaced" and not target.exists():
                path.rename(target)  # cut off between two renames
            else:
                shutil.rmtree(path, ignore_errors=True)
    return left


def hint_of(left: list[Path]) -> str:
    if not left:
        return ""
    names = ", ".join(path.name for path in left)
    return f". Beside it lies {names}: remove that where no other writer runs (this file system has no locks to tell)"


@contextmanager
def changing(root: Path) -> Iterator[Bundle]:
    """The bundle, opened, for this process alone to add files to and to enter them (`write_revision`).

    Files of builds that the manifest does not list are removed at both ends: what was cut off, and what has been
    replaced. Raises BundleError if another process is at it, or it cannot be written.
    """
    with locked(root) as lock:
        bundle = open_bundle(root)
        try:
            if lock.held:
                remove_unlisted(bundle)
            yield bundle
        except OSError as error:
            raise BundleError(f"cannot change {root}: {error.strerror or error}. It is left as it was") from error
        finally:
            if lock.held and lock.is_on(root):
                with suppress(OSError, ArforgeError):
                    remove_unlisted(open_bundle(root))


@contextmanager
def locked(root: Path) -> Iterator[FolderLock]:
    """Keep other writers off; file systems without locks go without."""
    while True:
        try:
            lock = FolderLock(root)
        except BlockingIOError:
            raise BundleError(f"another process is changing {root}: wait until it is done") from None
        except OSError as error:
            raise BundleError(f"cannot read {root}: {error.strerror or error}") from error
        with lock:
            if lock.is_on(root):
                yield lock
                return


def remove_unlisted(bundle: Bundle) -> None:
    """Remove files that builds have written and the manifest does not list, and folders that are empty now.

    Needs the lock: a writer's new files are not listed yet.
    """
    for path in sorted(bundle.root.rglob("*"), reverse=True):
        name = path.relative_to(bundle.root).as_posix()
        if path.is_dir() and not path.is_symlink():
            if is_folder(name):
                with suppress(OSError):  # it has files
                    path.rmdir()
        elif is_added(name) and name not in bundle.files:
            path.unlink(missing_ok=True)


def refuse_foreign(root: Path) -> None:
    """Raise BundleError if the bundle at `root`, which is to be replaced, holds files that arforge did not write."""
    try:
        listed: Container[str] = open_bundle(root).files
    except ArforgeError:  # a damaged one, or of another format
        listed = ()
    found = list(foreign(root, listed))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise BundleError(
            f"{root} holds files that arforge did not write: {', '.join(found[:SHOWN])}{more}. Move them away, or "
            "choose another output"
        )


def exchange(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, whose owner, group and mode stay, and `old` in that of `new`.

    In one step where the system can (Linux), else in two, between which a cut leaves `old` under another name that
    the next writer puts back; there it is removed at once.
    """
    keep_owner(old, new)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    aside = old.with_name(f".{old.name}.{secrets.token_hex(6)}.replaced")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    shutil.rmtree(aside)


def keep_owner(old: Path, new: Path) -> None:
    facts = old.stat()
    with suppress(PermissionError):  # only root gives folders away
        os.chown(new, facts.st_uid, facts.st_gid)
    shutil.copymode(old, new)


def link(source: Path, target: Path) -> None:
    """Give a file, which nobody changes in place, a second name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def write_revision(bundle: Bundle, new: Iterable[Path], gone: Container[str] = ()) -> None:
    """Replace the manifest by `bundle`'s in one step, with the facts of `new` files and without `gone` ones."""
    files = {path: facts for path, facts in bundle.files.items() if path not in gone}
    for path in new:
        files[path.relative_to(bundle.root).as_posix()] = facts_of(path)
    write_manifest(bundle.root, replace(bundle, files=files))


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
    """Write a small JSON file in one step. Raises BundleError if it cannot be written, ValueError for NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step. Raises BundleError if it cannot be written."""
    replace_file(path, text.encode())


def write_hashed(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write `folder`/`name`-HASH`suffix`, a name of its own for each content, in one step. Raises BundleError."""
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    replace_file(path, content)
    return path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there, so that nobody sees half of it, nor a hard link changes."""
    with new_file(path.parent) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


def settle(partial: Path, name: str, suffix: str) -> Path:
    """Rename a file of `new_file` to `name`-HASH`suffix`, by the hash of its content."""
    path = partial.with_name(f"{name}-{sha256_of(partial)[:12]}{suffix}")
    partial.replace(path)
    return path


@contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """The place of a new file in `folder`, to be renamed; removed at the end where it was not. Raises BundleError."""
    partial = folder / f".arforge-{secrets.token_hex(8)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        raise BundleError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


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
