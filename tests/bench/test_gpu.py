"""The GPU's checks in one go: what crashes, hangs or is not there costs itself alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
STAND_IN = Path(__file__).parent / "stand_in"
RTX = "tensorrt-rtx"
# As gpu_parts.py is called: items do as they are called.
ITEMS = """
import json, os, signal, sys, time
_, part, work, path, *items = sys.argv
state = {"done": {}, "so_far": {}}
def write():
    open(path + ".new", "w").write(json.dumps(state))
    os.replace(path + ".new", path)
for item in items:
    state["so_far"] = {}
    write()
    if part == "machine":
        state["so_far"] = json.loads(os.environ["MACHINE"])
    elif item == "crash":
        state["so_far"] = {"begun": True}
        write()
        print("the driver has gone", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif item == "hang":
        time.sleep(60)
    elif item == "raise":
        sys.exit("out of memory")
    elif item == "leave":
        os._exit(0)
    elif item == "long":
        for step in range(12):
            state["so_far"] = {"step": step}
            write()
            time.sleep(0.1)
    elif item == "error":
        state["so_far"] = {"error": "does not fit"}
    state["done"][item], state["so_far"] = {**state["so_far"], "of": part}, {}
    write()
"""
MACHINE = {"gpu": "Fake", "targets": [RTX], "view": True}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    yield gpu
    sys.modules.pop("gpu", None)


@pytest.fixture
def run(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs parts whose items do as they are called."""
    script = tmp_path / "items.py"
    script.write_text(ITEMS)
    monkeypatch.setattr(gpu, "SCRIPT", script)
    monkeypatch.setenv("MACHINE", json.dumps(MACHINE))

    def ran(parts: Sequence[tuple[str, Sequence[str], float]], *words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu, "parts", lambda targets, view: [gpu.Part(*part) for part in parts])
        output = tmp_path / "results" / "gpu.json"
        status = gpu.main(["--output", str(output), *words])
        return status, json.loads(output.read_text())

    return ran


def test_what_goes_wrong_costs_itself_alone(run: Any) -> None:
    status, figures = run(
        [
            ("first", ["one", "crash", "two", "hang", "three", "raise", "four", "leave", "five", "error"], 1),
            ("second", ["one"], 60),
        ]
    )
    assert status == 1
    first = figures["parts"]["first"]
    good = {name: found for name, found in first.items() if "error" not in found}
    assert good == {name: {"of": "first"} for name in ("one", "two", "three", "four", "five")}
    assert first["crash"]["begun"]
    assert "it crashed by SIGSEGV: the driver has gone" in first["crash"]["error"]
    assert first["hang"]["error"] == "it hung: ended after 1 s"
    assert first["raise"]["error"] == "it ended with status 1: out of memory"
    assert "it ended before its time" in first["leave"]["error"]
    assert first["error"]["error"] == "does not fit"
    assert figures["parts"]["second"] == {"one": {"of": "second"}}


def test_an_item_that_gets_on_does_not_hang(run: Any) -> None:
    status, figures = run([("first", ["long"], 0.7)])
    assert status == 0
    assert figures["parts"]["first"] == {"long": {"step": 11, "of": "first"}}


def test_what_there_is_no_time_for_is_said(run: Any, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    begun = time.monotonic()
    status, figures = run([("first", ["one", "hang", "two"], 60), ("second", ["one"], 60)], "--minutes", "0.12")
    assert time.monotonic() - begun < 40  # and not the minute of the one that hangs
    assert status == 1
    assert figures["parts"]["first"]["one"] == {"of": "first"}
    assert figures["parts"]["first"]["hang"]["error"] == "the time was up"
    assert figures["parts"]["first"]["two"] == figures["parts"]["second"]["one"] == {"skipped": "no time was left"}


def test_some_parts_alone(run: Any) -> None:
    _, figures = run([("tokens a", ["one"], 60), ("speed a", ["one"], 60)], "--only", "speed")
    assert list(figures["parts"]) == ["machine", "speed a"]


def test_without_a_gpu_it_says_so(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("MACHINE", json.dumps({**MACHINE, "gpu": None, "reason": "no driver"}))
    status, figures = run([("first", ["one"], 60)])
    assert status == 1
    assert list(figures["parts"]) == ["machine"]
    assert "there is no GPU to run on: no driver" in capsys.readouterr().err


def test_every_check_has_its_place_and_correctness_comes_first(gpu: ModuleType) -> None:
    parts = list(gpu.parts(["tensorrt-rtx", "tensorrt"], True))
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names.index("tokens tensorrt") < names.index("speed tensorrt-rtx")
    items = {f"{part.name}: {item}" for part in parts for item in part.items}
    for item in ("speed tensorrt-rtx: fp16 view", "speed torch-compile: fp16", "speed tensorrt: fp16 jacobi"):
        assert item in items
    assert not any("view" in item for part in gpu.parts([RTX], False) for item in (part.name, *part.items))


def test_it_looks_at_this_machine(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The very thing, where there is no GPU."""
    output = tmp_path / "gpu.json"
    if gpu.main(["--output", str(output), "--only", "nothing"]) == 0:
        pytest.skip("there is a GPU here")
    facts = json.loads(output.read_text())["parts"]["machine"]["facts"]
    assert facts["gpu"] is None
    assert facts["versions"]["onnxruntime"]
    assert RTX in facts["targets"]
    assert "there is no GPU to run on" in capsys.readouterr().err


def test_the_whole_of_it_on_a_stand_in(
    gpu: ModuleType, bundle: Path, par_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines are built; one build crashes, one hangs with a process of its own."""
    work, sleeper = tmp_path / "work", tmp_path / "sleeper"
    for name, source in (("llamagen", bundle), ("par", par_bundle), ("size", bundle)):
        shutil.copytree(source, work / f"{name}.bundle")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")]))
    for name, value in (("CRASHES", "par:fp32"), ("HANGS", "par:fp16"), ("SLEEPER", str(sleeper))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARFORGE_CACHE", str(tmp_path / "kernels"))

    def clock() -> float:
        """Ten minutes have gone as soon as a build hangs."""
        hangs = sleeper.exists() and sleeper.stat().st_size > 0
        return time.monotonic() + (601 if hangs else 0)

    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    parts = [
        gpu.Part("models", ["llamagen"], 600),
        gpu.Part(f"tokens {RTX}", ["llamagen fp32", "par fp32", "llamagen loop"], 600),
        gpu.Part(f"tokens {RTX}, more", ["par fp16"], 600),
        gpu.Part(f"speed {RTX}", ["fp16", "fp16 jacobi"], 600),
        gpu.Part("speed onnxruntime-cuda", ["fp16"], 600),
    ]
    monkeypatch.setattr(gpu, "parts", lambda targets, view: parts)
    output = tmp_path / "gpu.json"
    assert gpu.main(["--output", str(output), "--work", str(work), "--minutes", "60"]) == 1
    found = json.loads(output.read_text())["parts"]
    assert found["machine"]["facts"]["gpu"] == "Fake GPU"
    assert found["models"] == {"llamagen": {}}
    tokens = found[f"tokens {RTX}"]
    for name, calls in (("ntp", 64), ("zipar:2", 28)):
        row = tokens["llamagen fp32"]["schedules"][name]
        assert (row["steps"], row["image"], row["calls"]) == (1.0, 1.0, calls)
    assert 0 < tokens["llamagen fp32"]["schedules"]["zipar:2"]["launches"] <= 28
    assert "it crashed by SIGSEGV" in tokens["par fp32"]["error"]
    assert found[f"tokens {RTX}, more"]["par fp16"]["error"] == "it hung: ended after 600 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeper.read_text()), 0)  # it went with the one that started it
    loop = tokens["llamagen loop"]["schedules"]["jacobi:8"]
    assert loop["image"] == 1.0
    assert loop["launches"] < loop["calls"] == loop["calls_of_the_cpu"]
    speed = found[f"speed {RTX}"]
    row = speed["fp16"]["schedules"][0]
    assert (row["schedule"], row["steps"]) == ("ntp", 64)
    assert row["ms_per_step"]["median"] > 0
    assert row["ms_per_step_of_the_memory_limit"] > 0
    assert row["bandwidth_share"] > 0
    assert speed["fp16"]["same_tokens"] > 0.5
    pace = speed["fp16 jacobi"]
    assert pace["jacobi:16, calls by the host"]["calls"] == pace["jacobi:16, calls by the device"]["calls"]
    assert pace["ntp, calls by the device"]["launches"] < pace["ntp, calls by the host"]["launches"] == 64
    assert "has no CUDAExecutionProvider" in found["speed onnxruntime-cuda"]["fp16"]["error"]
