"""What the GPU's checks compare with, on the CPU: torch and ONNX Runtime as engines of the runner."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.conditions import sample_features

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The measures as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_measure

    yield gpu_measure
    for name in ("gpu_measure", "gpu_engines", "peers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "torch-cpu"])
@pytest.mark.parametrize(("name", "schedule"), [("bundle", "zipar:4"), ("arpg_bundle", "arpg:5")])
def test_the_peers_decode_the_same_tokens(
    gpu: ModuleType, runtime: str, name: str, schedule: str, request: pytest.FixtureRequest
) -> None:
    bundle = open_bundle(request.getfixturevalue(name))
    engine = gpu.engine_of(runtime, bundle, "fp32", [schedule], [1])
    with Runner(bundle, engine) as peer, Runner.open(bundle.root, threads=1) as own:
        for guidance in (1.0, 2.5):
            wanted = own.generate([3, 1, 4], schedule=schedule, guidance=guidance)
            found = peer.generate([3, 1, 4], schedule=schedule, guidance=guidance, batch=2)
            np.testing.assert_array_equal(found.tokens, wanted.tokens)
            np.testing.assert_array_equal(found.images, wanted.images)


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "torch-cpu"])
def test_the_peers_draw_the_same_prompts(gpu: ModuleType, runtime: str, text_bundle: Path) -> None:
    bundle = open_bundle(text_bundle)
    features = sample_features(bundle.model, 3)
    engine = gpu.engine_of(runtime, bundle, "fp32", ["zipar:4"], [1])
    with Runner(bundle, engine) as peer, Runner.open(bundle.root, threads=1) as own:
        for guidance in (1.0, 2.5):
            settings = {"features": features, "schedule": "zipar:4", "guidance": guidance, "top_k": 0}
            wanted = own.generate(**settings)
            np.testing.assert_array_equal(peer.generate(**settings, batch=2).tokens, wanted.tokens)


def test_agreement_counts_what_differs(gpu: ModuleType, bundle: Path) -> None:
    opened = open_bundle(bundle)
    reference, engine = (gpu.engine_of("onnxruntime-cpu", opened, "fp32", ["ntp"], [1]) for _ in range(2))
    assert gpu.same_step_tokens(opened, reference, engine, "ntp") == 1.0
    run = engine.run

    def wrong(width: int, queries: int = 0) -> None:
        run(width, queries)
        engine.buffers(width, queries).next_tokens[:] = 0

    engine.run = wrong
    assert 0 <= gpu.same_step_tokens(opened, reference, engine, "ntp") < 0.5


def test_a_provider_or_runtime_that_is_not_there_is_named(gpu: ModuleType, bundle: Path) -> None:
    with pytest.raises(EngineError, match="this onnxruntime has no CUDAExecutionProvider, but .*CPU"):
        gpu.engine_of("onnxruntime-cuda", open_bundle(bundle), "fp32", ["ntp"], [1])
    with pytest.raises(EngineError, match="no runtime 'abacus': use tensorrt, "):
        gpu.engine_of("abacus", open_bundle(bundle), "fp32", ["ntp"], [1])
