"""Runs of programs by another user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def readable(*files: Path) -> Iterator[None]:
    """Let other users in as far as these files' folders: a test's own are for their owner."""
    modes = {folder: folder.stat().st_mode for file in files for folder in file.parents}
    for folder, mode in modes.items():
        if mode & 0o055 != 0o055:
            folder.chmod(mode | 0o055)
    try:
        yield
    finally:
        for folder, mode in modes.items():
            if folder.stat().st_mode != mode:
                folder.chmod(mode)
