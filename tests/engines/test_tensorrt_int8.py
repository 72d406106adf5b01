"""Int8 engines run: on a GPU that is not there, beside the same int8 graph in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fake_gpu import RTX, FakeGpu, fake_library

from arforge.engines.lowered_session import session_of
from arforge.engines.precision import TYPES, lower_precision
from arforge.engines.tensorrt_run import compare_engine
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.bundle import Bundle, ClassCondition
from arforge.runner.conditions import sample_features

SETTINGS = [{"guidance": 1.0}, {"guidance": 3.0, "temperature": 0.8}, {"guidance": 7.5}, {"greedy": True}]


@pytest.fixture(params=["rtx_bundle", "rtx_text_bundle"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    return open_bundle(request.getfixturevalue(request.param))


def fake(bundle: Bundle) -> tuple[Bundle, dict[str, Any], Library, FakeGpu]:
    """What an engine is opened with."""
    identity, gpu = bundle.engine(RTX, "int8"), FakeGpu()
    library = fake_library(gpu, identity["library"].split()[1])
    library.trt.add(bundle, identity)
    return bundle, identity, library, gpu


def reference(bundle: Bundle) -> OnnxRuntimeEngine:
    """The bundle's int8 graph with all else in float16, attention and sampler as they are stored."""
    path = bundle.graph("step", "int8")
    model = ir.load(path)
    lower_precision(model, TYPES["fp16"])
    return OnnxRuntimeEngine(bundle, "int8", session=session_of(model, path.parent))


def subjects(bundle: Bundle) -> dict[str, Any]:
    """Five classes; or prompts of unequal lengths, the shortest and the longest among them, one twice."""
    if isinstance(bundle.model.condition, ClassCondition):
        return {"classes": [3, 1, 4, 1, 5]}
    one, two, three = sample_features(bundle.model, 3, seed=3)
    return {"features": [one[:1], np.tile(three, (120, 1))[:120], two, two, one]}


def test_tokens_are_those_of_the_int8_graph(opened: Bundle) -> None:
    engine = TensorRTEngine(*fake(opened))  # type: ignore[arg-type]
    with Runner(opened, engine) as mine, Runner(opened, reference(opened)) as wanted:
        for settings in SETTINGS:
            request = {**subjects(opened), "seeds": [9, 2**64 - 1, 7, 6, 5], "schedule": "zipar:4", "top_k": 0}
            expected = wanted.generate(**request, **settings).tokens
            np.testing.assert_array_equal(mine.generate(**request, **settings).tokens, expected)
            assert len({tuple(row.flat) for row in expected}) >= 4


def test_float16_around_the_products_keeps_keys_values_and_most_tokens(opened: Bundle) -> None:
    """As `verify` compares on a machine with a GPU: with the stored int8 graph, in float32 around the products.

    A value that float16 rounds across the border of two int8 codes is one code off, so nothing is exact here.
    """
    bundle, identity, library, gpu = fake(opened)
    found = compare_engine(bundle, identity, library, "zipar:4", gpu)  # type: ignore[arg-type]
    assert found.steps == 16
    assert 0 < found.largest_error < 0.1
    assert found.same_step_tokens >= 0.8
