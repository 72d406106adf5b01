"""Keeps what TensorRT-RTX compiles on a device, beside the user's other caches, so that it compiles once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from arforge.runner.backends.cuda import Gpu
from arforge.runner.errors import RequestError
from arforge.runner.output import write_whole

VARIABLE = "ARFORGE_CACHE"


def cache_folder() -> Path:
    """ARFORGE_CACHE, else arforge in XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arforge"


class KernelCache:
    """The kernels of one engine file, whose name holds its hash, on one kind of GPU.

    The library checks on loading that they fit its version and the device; what does not fit is compiled again.
    """

    def __init__(self, engine: Path, gpu: Gpu) -> None:
        self.path = cache_folder() / f"{engine.stem}-sm{gpu.compute_capability.replace('.', '')}.kernels"
        self._cache: Any = None
        self._known = b""

    def load(self, cache: Any) -> None:
        """Fill the library's cache from the file, where there is one."""
        self._cache = cache
        try:
            content = self.path.read_bytes()
        except OSError:
            return
        if cache.deserialize(content):
            self._known = content

    def save(self) -> None:
        """Write the file anew if there is more to keep; a folder that cannot be written costs time, not more."""
        content = bytes(self._cache.serialize())
        if content in (b"", self._known):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda file: file.write(content))
        except (OSError, RequestError):
            pass
