"""The script of a dry run: with a stand-in of trtexec it builds, and the bundle runs with what it has entered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, fake_library

from arforge.engines.tensorrt import BuildJob
from arforge.engines.trtexec import dry_run
from arforge.runner import Runner, open_bundle
from arforge.runner.backends import tensorrt_engine
from arforge.runner.backends.tensorrt_identity import same_library
from arforge.runner.bundle.writer import changing

RTX = "tensorrt-rtx"
STAND_IN = """#!{python}
import os, sys
from pathlib import Path
import onnx

options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
assert "--skipInference" in sys.argv
graph = Path(options["onnx"])
onnx.checker.check_model(graph)  # with what lies outside
values = onnx.load(graph, load_external_data=False).graph.input
inputs = {{value.name: value.type.tensor_type.shape for value in values}}
for bound in ("min", "opt", "max"):
    given = [word for word in sys.argv if word.startswith(f"--{{bound}}Shapes=")]
    assert given, bound
    for words in given:
        for part in words.split("=", 1)[1].split(","):
            name, _, shape = part.partition(":")
            for size, dim in zip(shape.split("x"), inputs[name].dim, strict=True):
                assert not dim.HasField("dim_value") or dim.dim_value == int(size), (name, shape)
print("&&&& RUNNING {banner} # " + " ".join(sys.argv))
print("[I] Selected Device: Orin")
print("[I] Compute Capability: 8.6")
if os.environ.get("FAILS", "none") in options["saveEngine"]:
    print("[E] Error[2]: out of memory")
    sys.exit(1)
Path(options["saveEngine"]).write_bytes(b"engine of " + graph.read_bytes() + os.environ.get("MORE", "").encode())
"""


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Puts a stand-in on a path of its own; it checks graphs, weights and shapes as the parser would."""

    def make(name: str, banner: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(STAND_IN.format(python=sys.executable, banner=banner))
        path.chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}

    return make


def script(folder: Path, bundle: Path, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """As a device runs it: from elsewhere, by the shell that is there."""
    return subprocess.run(
        ["/bin/sh", str(folder / "build.sh"), str(bundle)],
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
    )


def device_copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "device" / "model.bundle"))


@pytest.fixture
def run_there(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tokens of a bundle's engine for TensorRT, on the stand-in of library and GPU."""

    def tokens(path: Path, target: str, precision: str, version: str, **request: Any) -> Any:
        bundle, gpu = open_bundle(path), FakeGpu()
        library = fake_library(gpu, version, target)
        for identity in bundle.identities(target, precision):
            library.trt.add(bundle, identity)
        monkeypatch.setattr(tensorrt_engine, "Gpu", lambda: gpu)
        monkeypatch.setattr(tensorrt_engine, "load_library", lambda name: library)
        with Runner.open(path, target=target, precision=precision, threads=1) as runner:
            return runner.generate(**request)

    return tokens


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_device_builds_by_the_script_and_runs(
    bundle: Path, tmp_path: Path, program: Any, run_there: Any, precision: str
) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", precision, schedules=["zipar:4"]), folder)
    there = device_copy(bundle, tmp_path)
    done = script(folder, there, program("trtexec", "TensorRT.trtexec [TensorRT v110004] [b17]"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"entered tensorrt 11.0.4.17 {precision} for sm86 in {there}\n")
    opened = open_bundle(there)
    opened.check_hashes()
    identity = opened.engine("tensorrt", precision)
    assert (identity["device"], identity["compute_capabilities"]) == ("sm86", ["8.6"])
    assert identity["library"] == "tensorrt 11.0.4.17"
    assert {"onnxruntime", "tensorrt"} == {engine.target for engine in opened.engines}
    assert not [path for path in there.rglob("*") if "@" in path.name or ".new" in path.name]
    request = {"classes": [3, 5], "schedule": "zipar:4", "guidance": 2.0, "temperature": 0.0}
    found = run_there(there, "tensorrt", precision, "11.0.4", **request)
    if precision == "fp32":
        with Runner.open(bundle, threads=1) as runner:
            wanted = runner.generate(**request)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        np.testing.assert_array_equal(found.images, wanted.images)
    else:
        assert found.tokens.shape == (2, 64)
    with changing(there):  # what a later build finds unlisted goes: nothing of this does
        pass
    open_bundle(there).check_hashes()


def test_what_stands_between_two_calls_is_built_too(bundle: Path, tmp_path: Path, program: Any, run_there: Any) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp32", schedules=["ntp", "jacobi:6"]), folder)
    there = device_copy(bundle, tmp_path)
    done = script(folder, there, program("trtexec", "TensorRT.trtexec [TensorRT v110004]"))
    assert done.returncode == 0, done.stderr
    identity = open_bundle(there).engine("tensorrt", "fp32")
    for kind in ("loop", "table"):
        assert identity[kind].endswith(".engine")
        assert identity[f"{kind}_profiles"]
    with Runner.open(bundle, threads=1) as runner:
        for schedule in ("ntp", "jacobi:6"):
            request = {"classes": [1], "schedule": schedule, "guidance": 2.0}
            wanted = runner.generate(**request).tokens
            np.testing.assert_array_equal(run_there(there, "tensorrt", "fp32", "11.0.4.17", **request).tokens, wanted)


def test_a_bundle_without_images_for_tensorrt_rtx(
    grouped_bundle: Path, tmp_path: Path, program: Any, run_there: Any
) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(grouped_bundle, RTX, "fp32", ["8.6", "8.9"]), folder)
    there = device_copy(grouped_bundle, tmp_path)
    done = script(folder, there, program("tensorrt_rtx", "TensorRT-RTX.tensorrt_rtx [TensorRT-RTX v10701] [b116]"))
    assert done.returncode == 0, done.stderr
    identity = open_bundle(there).engine(RTX, "fp32")
    assert (identity["device"], identity["library"]) == ("sm86+sm89", "tensorrt-rtx 1.7.1.116")
    assert identity["decoder"] is None
    assert identity["decoder_reason"]
    assert run_there(there, RTX, "fp32", "1.7.1.116", classes=[1]).tokens.shape == (1, 24)


def test_what_goes_wrong_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path, program: Any) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp32", schedules=["zipar:4"]), folder)
    there = device_copy(bundle, tmp_path)
    before = (there / "manifest.json").read_bytes()
    environment = program("trtexec", "TensorRT.trtexec [TensorRT v110004]")
    for more, message in (
        ({"FAILS": "step"}, None),
        ({"FAILS": "decoder"}, "out of memory"),
        ({"PATH": "/usr/bin:/bin"}, "no trtexec on the path: name it with TRTEXEC="),
    ):
        done = script(folder, there, environment, **more)
        if message is None:  # no engine has that name
            assert done.returncode == 0, done.stderr
            (there / "manifest.json").write_bytes(before)
            continue
        assert done.returncode == 1
        assert message in done.stderr
        assert (there / "manifest.json").read_bytes() == before
    done = script(folder, tmp_path / "none", environment)
    assert "no bundle at" in done.stderr
    (there / "manifest.json").write_bytes(before + b" ")
    done = script(folder, there, environment)
    assert "has changed since: make the dry run again" in done.stderr
    odd = program("trtexec", "TensorRT.trtexec, whose banner says nothing")
    (there / "manifest.json").write_bytes(before)
    assert "does not name the library's version" in script(folder, there, odd).stderr
    open_bundle(there).check_hashes()


def test_it_can_be_run_again(bundle: Path, tmp_path: Path, program: Any) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp32", schedules=["zipar:4"]), folder)
    there = device_copy(bundle, tmp_path)
    environment = program("trtexec", "TensorRT.trtexec [TensorRT v110004]")
    for more in ("", "another"):
        done = script(folder, there, environment, MORE=more)
        assert done.returncode == 0, done.stderr
        opened = open_bundle(there)
        opened.check_hashes()
        assert len([engine for engine in opened.engines if engine.target == "tensorrt"]) == 1
    with changing(there):  # which removes the engines of before
        pass
    assert len(list((there / opened.engines[-1].path).parent.glob("step-*.engine"))) == 1


def test_versions_are_one_as_far_as_both_say() -> None:
    assert same_library("tensorrt 10.3.0", "tensorrt 10.3.0.30")
    assert same_library("tensorrt 10.3.0.30", "tensorrt 10.3.0.30")
    assert not same_library("tensorrt 10.3.0.30", "tensorrt 10.3.0.26")
    assert not same_library("tensorrt 10.3.0", "tensorrt 10.13.0")
    assert not same_library("tensorrt 1.7.1", "tensorrt-rtx 1.7.1")
