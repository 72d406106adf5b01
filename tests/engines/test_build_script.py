"""The script of a dry run: with a stand-in of trtexec it builds, and the bundle runs with what it has entered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, fake_library
from fake_trtexec import VERSIONS, write_program

from arforge.engines.tensorrt import BuildJob
from arforge.engines.trtexec import dry_run
from arforge.runner import Runner, open_bundle
from arforge.runner.backends import tensorrt_engine
from arforge.runner.backends.tensorrt_identity import same_library
from arforge.runner.bundle.writer import changing
from arforge.runner.conditions import sample_subjects

RTX = "tensorrt-rtx"


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Puts a stand-in on a path of its own; it checks options, graphs, weights and shapes as that version would."""

    def make(version: str, banner: str | None = None) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        write_program(folder / ("tensorrt_rtx" if version == "rtx" else "trtexec"), version, banner)
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


@pytest.mark.parametrize(
    ("version", "precision"),
    [(version, precision) for version in ("10.3", "11.0") for precision in ("fp32", "fp16", "int4")],
)
def test_a_device_builds_by_the_script_and_runs(
    bundle: Path, tmp_path: Path, program: Any, run_there: Any, version: str, precision: str
) -> None:
    folder, library = tmp_path / "graphs", VERSIONS[version].library
    dry_run(BuildJob(bundle, "tensorrt", precision, schedules=["zipar:4"], version=version), folder)
    there = device_copy(bundle, tmp_path)
    done = script(folder, there, program(version))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"entered tensorrt {library} {precision} for sm86 in {there}\n")
    opened = open_bundle(there)
    opened.check_hashes()
    identity = opened.engine("tensorrt", precision)
    assert (identity["device"], identity["compute_capabilities"]) == ("sm86", ["8.6"])
    assert identity["library"] == f"tensorrt {library}"
    assert identity["caches"]["lowering"] == ("read-only" if version == "10.3" else "in-place")
    assert (identity["table"] is None) == (version == "10.3")  # the host makes its calls
    assert {"onnxruntime", "tensorrt"} == {engine.target for engine in opened.engines}
    assert not [path for path in there.rglob("*") if "@" in path.name or ".new" in path.name]
    request = {"classes": [3, 5], "schedule": "zipar:4", "guidance": 2.0, "temperature": 0.0}
    found = run_there(there, "tensorrt", precision, library, **request)
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


@pytest.mark.parametrize("name", ["arpg_bundle", "text_bundle"])
def test_tensorrt_10_3_draws_the_cpus_tokens_of_other_models(
    name: str, tmp_path: Path, program: Any, run_there: Any, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    opened, folder = open_bundle(path), tmp_path / "graphs"
    schedule = opened.specifications[-1]
    dry_run(BuildJob(path, "tensorrt", "fp32", schedules=[schedule], images=[1, 2], version="10.3"), folder)
    there = device_copy(path, tmp_path)
    done = script(folder, there, program("10.3"))
    assert done.returncode == 0, done.stderr
    wishes = {**sample_subjects(opened.model, 2).take(range(2)), "schedule": schedule, "guidance": 2.0}
    with Runner.open(path, threads=1) as runner:
        wanted = runner.generate(**wishes).tokens
    np.testing.assert_array_equal(run_there(there, "tensorrt", "fp32", "10.3.0", **wishes).tokens, wanted)


@pytest.mark.parametrize(
    ("built_for", "there", "message"),
    [
        ("11.0", "10.3", r"the network is weakly typed"),
        ("10.16", "10.3", r"opset 2[234] is newer than 21"),
        ("10.3", "11.0", r"Unknown option: --stronglyTyped"),
    ],
)
def test_graphs_and_options_of_another_version_are_not_taken(
    bundle: Path, tmp_path: Path, program: Any, built_for: str, there: str, message: str
) -> None:
    """Which is what the stand-in is for."""
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp16", schedules=["ntp"], version=built_for), folder)
    place = device_copy(bundle, tmp_path)
    before = (place / "manifest.json").read_bytes()
    done = script(folder, place, program(there))
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert "trtexec failed: see " in done.stderr
    assert (place / "manifest.json").read_bytes() == before


def test_what_stands_between_two_calls_is_built_too(bundle: Path, tmp_path: Path, program: Any, run_there: Any) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp32", schedules=["ntp", "jacobi:6"]), folder)
    there = device_copy(bundle, tmp_path)
    done = script(folder, there, program("11.0", "TensorRT.trtexec [TensorRT v110004]"))
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
    done = script(folder, there, program("rtx"))
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
    environment = program("11.0", "TensorRT.trtexec [TensorRT v110004]")
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
    odd = program("11.0", "TensorRT.trtexec, whose banner says nothing")
    (there / "manifest.json").write_bytes(before)
    assert "does not name the library's version" in script(folder, there, odd).stderr
    open_bundle(there).check_hashes()


def test_it_can_be_run_again(bundle: Path, tmp_path: Path, program: Any) -> None:
    folder = tmp_path / "graphs"
    dry_run(BuildJob(bundle, "tensorrt", "fp32", schedules=["zipar:4"]), folder)
    there = device_copy(bundle, tmp_path)
    environment = program("11.0", "TensorRT.trtexec [TensorRT v110004]")
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
