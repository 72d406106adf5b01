"""The files of a bundle: plain ones, inside it, of the listed size, that may be read."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from arforge.runner.errors import BundleError, FileSizeError, MissingFileError, PathError

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def sha256_of(path: Path) -> str:
    """The hash of a file's content. Raises BundleError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error


def require_utf8(path: Path) -> None:
    """Raise BundleError for a path of other bytes than UTF-8, which ONNX Runtime cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BundleError(f"the path {str(path)!r} is not UTF-8, which runtimes need: rename it") from None


def mode_of(path: Path) -> int | None:
    """The kind and permissions of what lies at `path`, links not followed; None where nothing does.

    Raises BundleError if that cannot be seen: a permission denied is no missing file.
    """
    facts = _facts(path)
    return None if facts is None else facts.st_mode


def is_folder(path: Path) -> bool:
    """Whether `path` leads to a folder, also through links. Raises BundleError if that cannot be seen."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in NOT_THERE:
            return False
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:  # a name that the system cannot have
        return False


def check_file(root: Path, path: str, size: int) -> None:
    """Raise an error of its kind unless `path` is a plain file of that size below `root`, not through a link."""
    check_relative(path)
    place = root
    facts: os.stat_result | None = None
    for part in PurePosixPath(path).parts:
        place = place / part
        facts = _facts(place)
        if facts is None:
            raise MissingFileError(f"{root} lacks {path}: export the bundle again, or copy it whole")
        if stat.S_ISLNK(facts.st_mode):
            raise PathError(f"{place} is a link; a bundle holds plain files only: {plain_copy(root)}")
    if facts is None or not stat.S_ISREG(facts.st_mode):
        raise MissingFileError(f"{place} is not a file")
    if facts.st_size != size:
        raise FileSizeError(
            f"{place} has {facts.st_size} bytes, the manifest says {size}: the copy is incomplete; copy or export again"
        )
    if not os.access(place, os.R_OK):
        raise BundleError(f"cannot read {place}: {os.strerror(errno.EACCES)}")


def plain_copy(root: Path) -> str:
    """What to do about links."""
    return f"copy it with `{shlex.join(['cp', '-rL', str(root), 'COPY'])}`, or download it with --local-dir"


def inside(folder: Path, location: str) -> Path:
    """The file that a graph in `folder` names. Raises PathError if that leads out of the folder.

    Hard links are files like others here. The libraries of onnx refuse them: every copy by `cp -al` makes them.
    """
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PathError(f"a graph in {folder} names the file {location!r}, which lies outside: export the bundle again")
    return path


def check_relative(path: str) -> None:
    """Raise PathError unless `path` is relative, plain and stays inside."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or "\\" in path or ":" in path or "\0" in path:
        raise PathError(f"path {path!r} in the manifest is not a plain relative path")
    if not pure.parts or ".." in pure.parts or path != str(pure):
        raise PathError(f"path {path!r} in the manifest leaves the bundle, or is not in its shortest form")
    if not (path.isascii() and path.isprintable()) or any(part.endswith((".", " ")) for part in pure.parts):
        raise PathError(f"path {path!r} in the manifest has a name that not every system can have")


def check_distinct(paths: Iterable[str]) -> None:
    """Raise PathError if two paths, or folders of them, are one on a file system that does not tell case."""
    spelled: dict[str, str] = {}
    for path in paths:
        for place in (path, *map(str, PurePosixPath(path).parents)):
            first = spelled.setdefault(unicodedata.normalize("NFC", place).casefold(), place)
            if first != place:
                raise PathError(f"paths {first!r} and {place!r} in the manifest differ in case or accents only")


def _facts(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except ValueError:  # a name that the system cannot have
        return None
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
