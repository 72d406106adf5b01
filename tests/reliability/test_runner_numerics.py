"""The runner stops at the step whose logits are not numbers: in fp32 by a fault, in fp16 by a model with outliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fake_gpu import FakeGpu, fake_library

from arforge.engines import tensorrt
from arforge.runner import Runner, open_bundle
from arforge.runner.backends import tensorrt_engine
from arforge.runner.errors import NumericsError

RTX = "tensorrt-rtx"
OUTLIERS = 80_000  # times the weights of keys and values: they stay below fp16's 65504, what comes of them does not


def test_a_request_fails_in_the_step_and_the_runner_goes_on(bundle: Path) -> None:
    with Runner.open(bundle, threads=1) as runner:
        request = {"classes": [1, 2, 3], "seeds": [5, 6, 7], "schedule": "zipar:4", "batch": 2}
        expected = runner.generate(**request).tokens

        def poison(done: int, steps: int) -> None:
            if done == steps // 2 + 9:  # in the second part of the batch
                runner._engine.cache("value_cache_0")[0, 0, 0, 0] = np.nan  # type: ignore[union-attr]

        with pytest.raises(NumericsError, match=r"^step 9 of \d+, image 2: .*first seen in the values of layer 0"):
            runner.generate(**request, progress=poison)
        np.testing.assert_array_equal(runner.generate(**request).tokens, expected)


@pytest.fixture
def outliers(bundle_copy: Path) -> Path:
    """The bundle with some weights so large that float16 holds them, and not what comes of them."""
    graph = bundle_copy / "graphs/fp32/step.onnx"
    names = [name for name in ir.load(graph).graph.initializers if name.endswith("wqkv.weight")]
    assert len(names) == 2
    for name in names:
        place = ir.load(graph).graph.initializers[name].const_value
        assert isinstance(place, ir.ExternalTensor)
        weights = np.memmap(
            graph.parent / place.location, np.float32, "r+", place.offset or 0, (int(place.length or 0) // 4,)
        )
        weights *= OUTLIERS
        weights.flush()
    return bundle_copy


def test_fp16_that_overflows_errors_and_says_what_to_use(outliers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runner.open(outliers, threads=1) as runner:
        runner.generate([1], schedule="ntp")  # float32 reaches further
    job = tensorrt.BuildJob(outliers, RTX, "fp16", schedules=["ntp"])
    tensorrt.build(job)
    opened, gpu = open_bundle(outliers), FakeGpu()
    identity = opened.engine(RTX, "fp16")
    library = fake_library(gpu, identity["library"].split()[1])
    library.trt.add(opened, identity)
    monkeypatch.setattr(tensorrt_engine, "Gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_engine, "load_library", lambda target: library)
    with (
        Runner.open(outliers, target=RTX, precision="fp16") as runner,
        pytest.raises(
            NumericsError, match=r"^step 0 of 64, image 0: .* in the keys of layer 0; use a bf16 or fp32 engine"
        ),
    ):
        runner.generate([1], schedule="ntp")
