"""The GPU's checks in one go: what crashes, hangs or is not there costs itself alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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
MACHINE: dict[str, Any] = {"gpu": "Fake", "targets": [RTX], "lacks": {}}


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

    def ran(parts: Sequence[Any], *words: str, bundles: bool = True) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu, "parts", lambda targets: [gpu.Part(*part) for part in parts])
        work = tmp_path / "work"
        for part in parts if bundles else []:
            for item in part[1]:
                (work / f"{gpu.Part(*part).bundle(item)}.bundle").mkdir(parents=True, exist_ok=True)
        output = tmp_path / "results" / "gpu.json"
        status = gpu.main(["--output", str(output), "--work", str(work), *words])
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
    assert figures["parts"]["first"]["two"] == {"skipped": "no time was left"}
    assert figures["parts"]["second"]["one"] == {"of": "second"}  # whose share of the time was not touched


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
    parts = list(gpu.parts(["tensorrt-rtx", "tensorrt"]))
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names.index("tokens tensorrt") < names.index("speed tensorrt-rtx")
    items = {f"{part.name}: {item}" for part in parts for item in part.items}
    for item in ("speed tensorrt-rtx: fp16 view", "speed torch-compile: fp16", "speed tensorrt: fp16 jacobi"):
        assert item in items
    for family in ("llamagen", "par", "arpg", "llamagen-t2i", "janus"):
        for precision in ("fp32", "fp16"):
            assert f"tokens {RTX}: {family} {precision}" in items
        for precision in ("int8", "int4", "bf16"):
            assert f"tokens {RTX}, more: {family} {precision}" in items
    order = [
        f"tokens {RTX}",
        f"view {RTX}",
        "models, size",
        f"speed {RTX}",
        f"tokens {RTX}, more",
        "speed torch-compile",
    ]
    assert [name for name in names if name in order] == order
    assert not any("view" in item for part in gpu.parts(["tensorrt"]) for item in (part.name, *part.items))


def test_shares_fill_the_time_and_what_is_saved_is_there_for_later_parts(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that parts turn on: all that eight minutes have, and never more."""
    now = 100.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    for taken in (0.5, 1.0):
        begin, figures = now, gpu.Figures(tmp_path / "gpu.json", 8, [])
        parts, left = list(gpu.parts([RTX])), []
        for part in figures.shares(parts):
            left.append(figures.left)
            assert figures.left >= (100 if part.name == f"speed {RTX}" else 19)
            now += taken * figures.left
        assert now - begin <= 8 * 60 - gpu.SPARE + 1e-6
        whole = sum(part.share for part in parts)
        if taken == 1.0:
            assert left == pytest.approx([(480 - gpu.SPARE) * part.share / whole for part in parts])
        else:
            assert left[-1] > (480 - gpu.SPARE) * parts[-1].share / whole


def test_what_the_machine_lacks_costs_the_parts_that_need_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = {"polygraphy": "No module named 'polygraphy'", "onnx_ir": "No module named 'onnx_ir'"}
    monkeypatch.setenv("MACHINE", json.dumps({**MACHINE, "lacks": lacks}))
    parts = [("models", ["new"], 60), (f"tokens {RTX}", ["one"], 60), ("speed torch-cpu", ["two"], 60)]
    status, figures = run([*parts, ("view x", ["three verify"], 60)])
    assert status == 1
    said = figures["parts"][f"tokens {RTX}"]["one"]["skipped"]
    assert said.startswith(
        "this machine lacks onnx_ir, polygraphy (onnx_ir: No module named 'onnx_ir'; polygraphy: No "
    )
    assert said.endswith("): pip install onnx-ir polygraphy, or name a folder with --path")
    assert "models" not in figures["parts"]  # its bundle is there
    assert figures["parts"]["speed torch-cpu"] == {"two": {"of": "speed torch-cpu"}}


def test_models_are_made_for_the_parts_that_run_alone(gpu: ModuleType, tmp_path: Path) -> None:
    every = list(gpu.parts([RTX]))
    (tmp_path / "arpg.bundle").mkdir()
    assert [part.name for part in gpu.chosen(every, ["speed torch"], tmp_path)] == [
        "models, size",
        "speed torch-compile",
    ]
    models, view = gpu.chosen(every, ["view"], tmp_path)
    assert (models.items, view.items) == (["llamagen"], ["llamagen verify", "arpg verify"])
    assert "arpg" not in gpu.chosen(every, None, tmp_path)[0].items


def test_a_model_that_cannot_be_made_costs_the_items_that_run_it(run: Any) -> None:
    parts = [("models", ["raise", "one"], 60), ("tokens a", ["raise fp32", "one fp32"], 60)]
    _, figures = run(parts, bundles=False)
    assert figures["parts"]["models"]["raise"]["error"] == "it ended with status 1: out of memory"
    assert figures["parts"]["tokens a"]["raise fp32"] == {"skipped": "there is no raise.bundle"}


def test_it_begins_with_python_alone(tmp_path: Path) -> None:
    """On a machine without a single package: it says what is missing."""
    output, missing = (
        tmp_path / "gpu.json",
        ("numpy", "onnx", "onnx_ir", "torch", "polygraphy", "tensorrt_rtx_bindings"),
    )
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n")
    command = [sys.executable, str(BENCH / "gpu.py"), "--output", str(output), "--path", str(tmp_path)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no GPU to run on: numpy is missing: import of numpy halted" in done.stderr
    facts = json.loads(output.read_text())["parts"]["machine"]["facts"]
    assert {*missing[:-1], RTX, "tensorrt"} <= set(facts["lacks"])
    assert facts["targets"] == []


def test_folders_of_packages_and_libraries_reach_the_parts(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    run([("first", ["one"], 60)], "--path", str(tmp_path / "a"), "--path", str(tmp_path / "b"))
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert os.environ["LD_LIBRARY_PATH"].split(os.pathsep) == ["/before", *folders]
    assert os.environ["PYTHONPATH"].split(os.pathsep)[-3:] == [str(BENCH.parent), *folders]


def test_it_looks_at_this_machine(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The very thing, where there is no GPU."""
    output = tmp_path / "gpu.json"
    if gpu.main(["--output", str(output), "--only", "nothing"]) == 0:
        pytest.skip("there is a GPU here")
    facts = json.loads(output.read_text())["parts"]["machine"]["facts"]
    assert facts["gpu"] is None
    assert facts["versions"]["onnxruntime"]
    assert RTX in facts["targets"]
    assert set(facts["lacks"]) == {"tensorrt"}
    assert "there is no GPU to run on" in capsys.readouterr().err


def is_gone(process: int) -> bool:
    """Whether a process that was killed ends; who inherits it may take a while to notice."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


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
        gpu.Part(f"tokens {RTX}", ["llamagen fp32", "par fp32", "llamagen jacobi"], 600),
        gpu.Part(f"tokens {RTX}, more", ["par fp16"], 600),
        gpu.Part("speed onnxruntime-cuda", ["fp16"], 600),
    ]
    monkeypatch.setattr(gpu, "parts", lambda targets: parts)
    output = tmp_path / "gpu.json"
    assert gpu.main(["--output", str(output), "--work", str(work), "--minutes", "60"]) == 1
    found = json.loads(output.read_text())["parts"]
    assert found["machine"]["facts"]["gpu"] == "Fake GPU"
    tokens = found[f"tokens {RTX}"]
    for name, calls in (("ntp", 64), ("zipar:2", 28)):
        row = tokens["llamagen fp32"]["schedules"][name]
        assert (row["steps"], row["image"], row["calls"]) == (1.0, 1.0, calls)
    assert 0 < tokens["llamagen fp32"]["schedules"]["zipar:2"]["launches"] <= 28
    assert "it crashed by SIGSEGV" in tokens["par fp32"]["error"]
    assert found[f"tokens {RTX}, more"]["par fp16"]["error"] == "it hung: ended after 600 s"
    assert is_gone(int(sleeper.read_text()))  # with the one that started it
    loop = tokens["llamagen jacobi"]["schedules"]["jacobi:8"]
    assert loop["image"] == 1.0
    assert loop["launches"] < loop["calls"] == loop["calls_of_the_cpu"]
    assert "has no CUDAExecutionProvider" in found["speed onnxruntime-cuda"]["fp16"]["error"]
