"""What is dear to make is made by one process of a test session, and the others take it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder of that name, filled by `make` in one process of the session; a copy of this process's own."""
    kept = kept_folder(factory)
    with (kept / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / name).exists():
            with TemporaryDirectory(dir=kept) as folder:
                make(Path(folder) / name)
                (Path(folder) / name).rename(kept / name)
    own = factory.mktemp(name.partition(".")[0]) / name
    return Path(shutil.copytree(kept / name, own) if (kept / name).is_dir() else shutil.copy(kept / name, own))


def kept_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a test session share."""
    base = factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    kept.mkdir(exist_ok=True)
    return kept
