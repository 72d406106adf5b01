"""TensorRT's engines, opened on a GPU that is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import RTX, FakeGpu, Opened, fake_library

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.runner import Runner, open_bundle
from arforge.runner.backends import tensorrt_engine
from arforge.runner.backends.tensorrt_engine import TensorRTEngine


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))


@pytest.fixture(scope="session")
def build_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a float32 engine, as `BuildJob` has it, into a copy of a bundle."""

    def built(bundle: Path, **wishes: Any) -> Path:
        path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("trt") / bundle.name))
        tensorrt.build(BuildJob(path, RTX, "fp32", **wishes))
        return path

    return built


@pytest.fixture
def open_fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Opened]]:
    """Opens a bundle's engine by the public way, on a GPU that is not there."""
    runners = []

    def opened(path: Path, precision: str = "fp32", look_every: int | None = None, **facts: Any) -> Opened:
        bundle, gpu = open_bundle(path), FakeGpu()
        for name, value in facts.items():
            setattr(gpu, name, value)
        identities = bundle.identities(RTX, precision)
        library = fake_library(gpu, identities[0]["library"].split()[1])
        for identity in identities:
            library.trt.add(bundle, identity)
        monkeypatch.setattr(tensorrt_engine, "Gpu", lambda: gpu)
        monkeypatch.setattr(tensorrt_engine, "load_library", lambda target: replace(library, target=target))
        runner = Runner.open(path, target=RTX, precision=precision, threads=1, look_every=look_every)
        runners.append(runner)
        engine = runner._engine
        assert isinstance(engine, TensorRTEngine)
        return runner, engine, gpu

    yield opened
    for runner in runners:
        runner.close()
