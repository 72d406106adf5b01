"""Every part of the GPU's checks on a GPU that is not there, with the models that it makes, but smaller."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_gpu import RTX
from fake_machine import pretend
from tiny import VQ_CONFIG

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.runner import open_engine

BENCH = Path(__file__).parents[2] / "bench"
FAMILIES = ("llamagen", "par", "arpg", "llamagen-t2i", "janus")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
SMALL = {"dim": 64, "n_layer": 2, "n_head": 4, "grid": (4, 4), "vocab_size": VQ_CONFIG.codebook_size, "multiple_of": 32}
COUNTED = ("launches", "waits", "bytes_to_the_device", "bytes_to_the_host")
TIMED = ("ms_per_step", "bandwidth_share", "bytes_per_second", "runner_ms_per_step", "ms_per_step_of_the_memory_limit")


@pytest.fixture(scope="session")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The scripts' own, imported as the scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import gpu_measure
        import gpu_models
        import gpu_parts

        found = {"measure": gpu_measure, "models": gpu_models, "parts": gpu_parts}
        yield found
        for name in ("gpu_measure", "gpu_models", "gpu_parts", "gpu_counts", "gpu_engines", "peers", "build_engines"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, modules: dict[str, ModuleType]) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules["models"], "DIMENSIONS", SMALL)
        for family in FAMILIES:
            modules["models"].make(family, folder)
    shutil.copytree(folder / "llamagen.bundle", folder / "size.bundle")
    return folder


@pytest.fixture
def do(
    modules: dict[str, ModuleType], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[str, Any]]:
    """What a part finds of an item."""
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))
    pretend(monkeypatch.setattr)
    state = modules["parts"].State(tmp_path / "state.json")

    def done(part: str, item: str) -> dict[str, Any]:
        state.note({})
        modules["parts"].do(part, item, work, state)
        found: dict[str, Any] = state.content["so_far"]
        return found

    return done


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_every_family_in_every_precision(
    do: Any, work: Path, modules: dict[str, ModuleType], family: str, precision: str
) -> None:
    found = do(f"tokens {RTX}, more", f"{family} {precision}")
    identity = open_bundle(work / f"{family}.bundle").engine(RTX, precision)
    assert found["engine_bytes"] == (work / f"{family}.bundle" / identity["engine"]).stat().st_size
    assert len(found["copied_cache_bytes"]) == found["profiles"] == len(identity["profiles"])
    assert found["seconds_to_build_and_load"] > 0
    assert tuple(found["schedules"]) == modules["models"].schedules_of(family)
    for row in found["schedules"].values():
        assert row["calls"] == row["calls_of_the_cpu"] > 1
        assert row["image_again"] == 1.0
        assert all(row[name] > 0 for name in COUNTED)
        assert row["launches"] < row["calls"]  # several calls a launch
        assert row["bytes_to_the_host"] >= 8 * 16  # the tokens
        assert ("steps_of_its_own_graph" in row) == (precision in ("fp16", "int8", "int4"))
        assert row.get("steps_of_its_own_graph", 1.0) >= 0.9  # quantisers may round a tie otherwise
        if precision == "fp32":
            assert row["steps"] == row["image"] == 1.0
        assert row["steps"] >= {"int8": 0.5, "int4": 0.2}.get(precision, 0.9)


def test_tokens_that_are_not_the_cpus_are_an_error(
    do: Any, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["measure"], "same_step_tokens", lambda *_: 0.5)
    with pytest.raises(EngineError, match="float32 tokens differ from the CPU's: .*'steps': 0.5"):
        do(f"tokens {RTX}", "par fp32")


def test_drafts_on_the_device(do: Any) -> None:
    (row,) = do(f"tokens {RTX}", "llamagen jacobi")["schedules"].values()
    assert row["image"] == 1.0
    assert row["launches"] < row["calls"] == row["calls_of_the_cpu"]


@pytest.mark.parametrize("family", ["llamagen", "arpg"])
@pytest.mark.parametrize("kind", ["tokens", "view"])
def test_engines_are_verified_beside_the_cpu(do: Any, work: Path, family: str, kind: str) -> None:
    said = do(f"{kind} {RTX}", f"{family} verify")["said"]
    (line,) = [line for line in said if f"{RTX} fp16" in line and "beside ONNX Runtime" in line]
    assert "100.0 % of tokens the same, " in line
    assert any("views: its graph on ONNX Runtime" in line for line in said) == (kind == "view")
    path = work / f"view-{family}.bundle" if kind == "view" else work / f"{family}.bundle"
    views = open_bundle(path).engine(RTX, "fp16")["attention"]["lowering"] == "view"
    assert views == (kind == "view")


@pytest.mark.parametrize("item", ["fp16", "fp16 view", "fp16 batch", "int4", "int8"])
def test_speed(do: Any, item: str) -> None:
    found = do(f"speed {RTX}", item)
    assert found["device"] == "Fake GPU, compute capability 8.6"
    assert found["bytes_per_second_of_a_copy"] == 1e9
    assert found["attention"]["lowering"] == ("view" if "view" in item else "fused")
    assert found["same_tokens"] > 0.2
    assert [row["schedule"] for row in found["schedules"]] == ["ntp", "zipar:2"]
    for row in found["schedules"]:
        assert row["batch"] == (16 if "batch" in item else 1)
        assert row["steps"] == {"ntp": 16, "zipar:2": 12}[row["schedule"]]
        assert all(row[name] for name in TIMED)
        assert sum(width["steps"] for width in row["ms_per_step_by_width"]) == row["steps"]


def test_the_pace_of_drafts_beside_the_hosts_calls(do: Any) -> None:
    found = do(f"speed {RTX}", "fp16 jacobi")
    assert len(found) == 4
    for name in ("ntp", "jacobi:16"):
        own, hosts = (found[f"{name}, calls by the {by}"] for by in ("device", "host"))
        assert own["launches"] < hosts["launches"] == hosts["calls"] == own["calls"]
        assert own["bytes_to_the_device"] < hosts["bytes_to_the_device"]


@pytest.mark.parametrize("peer", ["onnxruntime-cpu", "torch-cpu"])
def test_peers_are_timed_the_same_way(do: Any, peer: str) -> None:
    found = do(f"speed {peer}", "fp32")
    assert [row["steps"] for row in found["schedules"]] == [16, 12]
    assert found["same_tokens"] == 1.0
    assert "engine_bytes" not in found


def test_counts_are_those_of_the_gpu(do: Any, work: Path, modules: dict[str, ModuleType]) -> None:
    """Launches, waits and bytes, with prompts row by row and graphs that copy."""
    do(f"tokens {RTX}", "llamagen-t2i fp32")
    bundle = open_bundle(work / "llamagen-t2i.bundle")
    engine: Any = open_engine(bundle, RTX, "fp32")
    counts, gpu = modules["measure"].Counts(engine), engine.gpu
    with Runner(bundle, engine) as runner:
        for _ in range(2):
            before = gpu.launches, gpu.waits, gpu.sent, gpu.fetched
            runner.generate(**sample_subjects(bundle.model, 1).take([0]), schedule="zipar:2", guidance=2.0)
            after = gpu.launches, gpu.waits, gpu.sent, gpu.fetched
            taken = counts.taken()
            assert [taken[name] for name in COUNTED] == [b - a for a, b in zip(before, after, strict=True)]
            assert all(taken.values())
