"""What is dear to make is made by one process of a test session, and the others take it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import pytest

from arforge.export.image_tokenizers import graphs


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder of that name, filled by `make` in one process of the session; a copy of this process's own."""
    base = factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    kept.mkdir(exist_ok=True)
    with (kept / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / name).exists():
            with TemporaryDirectory(dir=kept) as folder:
                make(Path(folder) / name)
                (Path(folder) / name).rename(kept / name)
    own = factory.mktemp(name.partition(".")[0]) / name
    return Path(shutil.copytree(kept / name, own) if (kept / name).is_dir() else shutil.copy(kept / name, own))


def trace_tokenizers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of image tokenizers of one shape are traced once a process: nothing in a test takes longer."""
    for name in ("trace_decoder", "trace_encoder"):
        monkeypatch.setattr(graphs, name, remembered(getattr(graphs, name)))


def remembered(trace: Callable[[graphs.ImageTokenizer], ir.Model]) -> Callable[[graphs.ImageTokenizer], ir.Model]:
    traced: dict[object, ir.Model] = {}

    def call(model: graphs.ImageTokenizer) -> ir.Model:
        key = (type(model), *((tensor, value.shape) for tensor, value in model.state_dict().items()))
        if key not in traced:
            traced[key] = trace(model)
        return traced[key].clone()  # who takes it binds it to weights

    return call
