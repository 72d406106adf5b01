"""The comparison of an engine with ONNX Runtime, on a GPU that is not there."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeContext, FakeGpu, fake_library

from arforge.engines import tensorrt, tensorrt_run, tensorrt_verify
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_run import comparable, compare_engine
from arforge.engines.verify import verify_bundle
from arforge.runner import open_bundle
from arforge.runner.errors import VerificationError

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("run") / "tiny.bundle"))
    tensorrt.build(BuildJob(path, RTX, "fp32", ["8.6"], ["zipar:4"]))
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))


def test_an_engine_that_does_the_same_agrees(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify --target` as on a machine with a GPU; the network is parsed by the real library."""
    bundle = open_bundle(built)
    gpu = FakeGpu()
    library = fake_library(gpu, bundle.engine(RTX, "fp32")["library"].split()[1])
    library.trt.add(bundle, bundle.engine(RTX, "fp32"))
    monkeypatch.setattr(tensorrt_run, "Gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_verify, "gpu_compute_capability", lambda: "8.6")
    real = tensorrt_run.compare_engine
    monkeypatch.setattr(tensorrt_run, "compare_engine", lambda b, i, _, schedule: real(b, i, library, schedule))
    lines: list[str] = []
    verify_bundle(built, lines.append, target=RTX)
    (line,) = [line for line in lines if "beside ONNX Runtime" in line]
    assert "zipar:4, 16 steps" in line
    assert "100.0 % of tokens the same, 100.0 % over whole images" in line
    assert gpu.closed


def test_a_wrong_cache_is_found(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, gpu = open_bundle(built), FakeGpu()
    identity = bundle.engine(RTX, "fp32")
    library = fake_library(gpu, "1.7")
    library.trt.add(bundle, identity)
    run = FakeContext.execute_async_v3

    def wrong(self: FakeContext, stream: int) -> bool:
        done = run(self, stream)
        address = self.addresses["key_cache_1"]
        size = int(np.prod(self.get_tensor_shape("key_cache_1")))
        floats = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
        self.engine.gpu.do(lambda: np.multiply(floats, 1.01, out=floats))
        return done

    monkeypatch.setattr(FakeContext, "execute_async_v3", wrong)
    with pytest.raises(
        VerificationError, match=r"Fake GPU.*: step \d+ writes key_cache_1 with an error of \d.*allowed is"
    ):
        compare_engine(bundle, identity, library, "zipar:4", gpu)  # type: ignore[arg-type]


def test_bfloat16_is_read_bit_by_bit() -> None:
    values = np.array([1.5, -2.0, 0.0, 3.0e38], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_allclose(comparable(upper.view("V2")), values, rtol=1e-2)
