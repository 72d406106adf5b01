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
from arforge.runner.conditions import sample_features
from arforge.runner.errors import NumericsError, RequestError

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


def test_features_that_are_not_finite_are_named_and_the_runner_goes_on(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    features = sample_features(opened.model, 3)
    wrong = [features[0], features[1].copy(), features[2]]
    wrong[1][-1, 3] = np.nan
    huge = [features[0], features[1], features[2] * 1e38]  # which overflow once they are rows of the condition
    with Runner.open(text_bundle, threads=1) as runner:
        expected = runner.generate(features=features, schedule="zipar:4").tokens
        with pytest.raises(RequestError, match="prompt 1 hold"):
            runner.generate(features=wrong, schedule="zipar:4")
        for batch in (1, 2, 3):
            message = rf"^the prompt of image 2: the logits are non-finite in its first \d+ tokens of {len(huge[2])}"
            with pytest.raises(NumericsError, match=message + ", first seen in .*; check its features, check the wei"):
                runner.generate(features=huge, schedule="zipar:4", batch=batch)
            np.testing.assert_array_equal(runner.generate(features=features, schedule="zipar:4").tokens, expected)


def test_a_prompt_of_one_row_fails_in_the_step(text_bundle: Path) -> None:
    one = sample_features(open_bundle(text_bundle).model, 1)[0][:1]
    with Runner.open(text_bundle, threads=1) as runner:
        expected = runner.generate(features=[one], schedule="ntp").tokens
        with pytest.raises(NumericsError, match=r"^step 0 of 64, image 1: the logits are non-finite"):
            runner.generate(features=[one, one * 1e38], schedule="ntp")
        np.testing.assert_array_equal(runner.generate(features=[one], schedule="ntp").tokens, expected)


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
