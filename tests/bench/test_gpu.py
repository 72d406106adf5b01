"""The GPU benchmark, whole, on the CPU: the engines that it compares, and what it writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from arforge.export import layers, sampler
from arforge.export.families import arpg
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.conditions import sample_features

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; what its torch engine changes in the layers is changed back."""
    monkeypatch.syspath_prepend(str(BENCH))
    for module, name in ((layers, "write_cache"), (arpg, "write_cache"), (sampler, "keep_likely")):
        monkeypatch.setattr(module, name, getattr(module, name))
    import gpu

    yield gpu
    for name in ("gpu", "gpu_engines", "peers", "build_engines"):
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
    with pytest.raises(SystemExit, match="no runtime 'abacus': use tensorrt, "):
        gpu.engine_of("abacus", open_bundle(bundle), "fp32", ["ntp"], [1])


def test_it_writes_figures_of_what_runs_and_errors_of_what_does_not(
    gpu: ModuleType, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "tiny.bundle"))
    monkeypatch.setattr(gpu, "export", lambda *model: root)
    output = tmp_path / "results" / "gpu.json"
    runtimes = ["onnxruntime-cpu", "tensorrt"]
    gpu.main(
        [
            *("--work", str(tmp_path / "work"), "--output", str(output), "--case", "llamagen:X:8x8=ntp,zipar:4"),
            *(word for runtime in runtimes for word in ("--runtime", runtime)),
            *("--precision", "fp32", "--batch", "1", "--batch", "2"),
        ]
    )
    figures = json.loads(output.read_text())
    assert figures["versions"]["onnxruntime"]
    works, fails = figures["runs"]
    assert (works["runtime"], works["model"]) == ("onnxruntime-cpu", "tiny")
    assert "cores" in works["device"]
    assert [(row["schedule"], row["batch"]) for row in works["schedules"]] == [
        ("ntp", 1),
        ("zipar:4", 1),
        ("ntp", 2),
        ("zipar:4", 2),
    ]
    for row in works["schedules"]:
        assert row["ms_per_step"]["median"] > 0
        assert row["ms_per_step_of_the_memory_limit"] > 0
        assert row["ms_per_image"] > 0
        assert row["bandwidth_share"] > 0
        assert row["steps_saved"] == 1 - row["steps"] / 64
    assert works["agreement"] == [
        {"schedule": "ntp", "steps": 1.0, "image": 1.0},
        {"schedule": "zipar:4", "steps": 1.0, "image": 1.0},
    ]
    assert "tensorrt is not installed" in fails["error"]
