"""Services that the tests of this folder ask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from http_service import Running, running

from arforge.serving.limits import Limits


@pytest.fixture(scope="session")
def class_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 8x8 bundle with names for its classes, as raster.bundle."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("serving") / "raster.bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model"]["labels"] = [f"name {index}" for index in range(10)]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="session")
def service(class_bundle: Path, arpg_bundle: Path) -> Iterator[Running]:
    """Models raster (8x8, classes) and arpg (4x6, random order)."""
    with running([class_bundle, arpg_bundle], Limits(batch=4, waiting=8, images=6, pixels=4096, body=1 << 18)) as one:
        yield one


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Starts services that are stopped after the test."""
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(running(*given, **more))
