"""Where results go: tried before the work, and written whole or not at all where a regular file is meant.

What is no regular file (a device, a pipe, /dev/stdout) is written to, as cp and the shell's redirection do. Links are
followed. An existing file keeps its owner, group and mode; one in a folder that may not be written is written in place.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from arforge.runner.errors import RequestError

DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/(\d+)")
NO_FILE_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_REPLACING = (*NO_FILE_BESIDE, errno.EBUSY, errno.EXDEV)  # busy: a mount of its own, as containers have


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Raise RequestError unless every output, by its option, can be written, each at a place of its own."""
    options: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        with _named(path):
            place = _try(path)
        if place is not None and place in options:
            raise RequestError(f"{options[place]} and {option} both write {path}: name two files")
        if place is not None:
            options[place] = option


def is_stream(path: Path) -> bool:
    """Whether what is written to `path` passes on at once, as through a pipe: it cannot be written anew."""
    try:
        return _descriptor(path) is not None or _other_kind(_facts(path))
    except OSError:
        return False


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file by `write`, whole or not at all. Raises RequestError if it cannot be written."""
    with writing(path) as file:
        write(file)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error; devices and pipes get it at once.

    Raises RequestError if it cannot be written.
    """
    with _named(path), _opened(path) as file:
        yield file


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = f" (make the folder {path.parent} first)" if error.errno == errno.ENOENT else ""
        raise RequestError(f"cannot write {path}: {error.strerror or error}{hint}") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    facts = _checked(path)
    descriptor = _descriptor(path)
    if descriptor is not None or _other_kind(facts):
        with _stream(os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)) as file:
            yield file
        return
    target = _place(path)
    partial = _beside(target)
    try:
        descriptor = _create(partial, facts)
    except OSError as error:
        if facts is None or error.errno not in NO_FILE_BESIDE:
            raise
        with target.open("r+b") as file:
            file.truncate()
            yield file
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        _replace(partial, target, facts)
    finally:
        partial.unlink(missing_ok=True)


def _try(path: Path) -> Path | None:
    """Raise OSError if `path` cannot be written. Returns its place, None for what passes on what it is given."""
    facts = _checked(path)
    if _descriptor(path) is not None or _other_kind(facts):
        return None
    target = _place(path)
    partial = _beside(target)
    try:
        os.close(_create(partial, facts))
        partial.unlink()
    except OSError as error:
        if facts is None or error.errno not in NO_FILE_BESIDE:
            raise
    return target


def _checked(path: Path) -> os.stat_result | None:
    """What lies at `path`, None for nothing. Raises OSError for a folder, and for what may not be written."""
    facts = _facts(path)
    if not path.name or (facts is not None and stat.S_ISDIR(facts.st_mode)):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    # what is open already may be written to, whoever its file belongs to
    if facts is not None and _descriptor(path) is None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return facts


def _facts(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except ValueError as error:  # a zero byte
        raise OSError(errno.EINVAL, str(error)) from error


def _other_kind(facts: os.stat_result | None) -> bool:
    return facts is not None and not stat.S_ISREG(facts.st_mode)


def _descriptor(path: Path) -> int | None:
    """The open file of this process that `path` stands for: opened anew, it would be written from its beginning."""
    match = DESCRIPTOR.fullmatch(os.path.normpath(path))
    if match is None:
        return None
    return int(match[2] or ("stdout", "stderr").index(match[1]) + 1)


def _place(path: Path) -> Path:
    """Where links lead, also to a file that is not there yet."""
    return Path(os.path.realpath(path))


def _beside(target: Path) -> Path:
    return target.with_name(f".arforge-{secrets.token_hex(8)}.partial")


def _create(partial: Path, facts: os.stat_result | None) -> int:
    """A new file, for its owner alone as long as it is not known to whom the file belongs that it will replace."""
    return os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if facts is None else 0o600)


def _replace(partial: Path, target: Path, facts: os.stat_result | None) -> None:
    try:
        if facts is not None:
            _hand_over(partial, facts)
        partial.replace(target)
    except OSError as error:
        if facts is None or error.errno not in NO_REPLACING:
            raise
        with partial.open("rb") as source, target.open("r+b") as file:
            file.truncate()
            shutil.copyfileobj(source, file)


def _hand_over(partial: Path, facts: os.stat_result) -> None:
    """Give a file owner, group and mode of the one that it replaces. Raises PermissionError if that may not be."""
    own = partial.stat()
    if (own.st_uid, own.st_gid) != (facts.st_uid, facts.st_gid):
        os.chown(partial, facts.st_uid, facts.st_gid)
    partial.chmod(stat.S_IMODE(facts.st_mode))


def _stream(descriptor: int) -> BinaryIO:
    sys.stdout.flush()
    sys.stderr.flush()
    return cast("BinaryIO", io.BufferedWriter(_Stream(descriptor)))


class _Stream(io.RawIOBase):
    """Writes one byte after the other: libraries that are shown a file descriptor ask where in the file they are."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
