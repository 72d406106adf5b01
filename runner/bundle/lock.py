"""Advisory locks on folders, which end with the process that holds them, wherever that runs.

A process id names a process of one host and one container only; whether a folder's writer lives, its lock says.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

# Of file systems without locks, or without locks on folders, as NFS and Lustre may be.
UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """The lock on `folder`, until it is closed. `held` is False where there are no locks: then others may be at it.

    Raises BlockingIOError if another writer has it, and OSError where the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        self._descriptor: int | None = None
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                self.close()
                raise

    def is_on(self, folder: Path) -> bool:
        """Whether `folder` is still what was opened, and not another that has taken its place."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), folder.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self.held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
