"""Commands that run an engine: ONNX Runtime's default one is built where it is missing, others are asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from arforge import engine
from arforge.cli import main
from arforge.runner import BundleError, EngineError, Runner, open_bundle
from arforge.runner.bundle.writer import locked
from arforge.runner.targets import DEFAULT_PRECISION, TARGETS, default_precision


def arforge(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def unbuilt(exported_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_bundle, tmp_path / "new one.bundle"))


def built(path: Path) -> list[tuple[str, str]]:
    return [(entry.target, entry.precision) for entry in open_bundle(path).engines]


def test_run_builds_what_is_missing_and_says_so(unbuilt: Path, runner: Runner) -> None:
    out = unbuilt.with_name("t.npy")
    words = ("run", unbuilt, "--class", 3, "--seed", 5, "--tokens", out, "--quiet")
    result = arforge(*words)
    assert result.exit_code == 0, result.output
    note, done = result.stderr.splitlines()
    assert note == f"{unbuilt} has no onnxruntime fp32 engine yet: building it"
    assert done.startswith("built onnxruntime fp32: onnxruntime 1.")
    assert built(unbuilt) == [("onnxruntime", "fp32")]
    assert (np.load(out) == runner.generate([3], [5]).tokens).all()
    assert arforge(*words).stderr == ""  # it is there now


def test_profile_builds_too_and_does_not_count_it(unbuilt: Path) -> None:
    figures = unbuilt.with_name("p.json")
    result = arforge("profile", unbuilt, *("--schedule", "ntp", "--max-steps", 2, "--json", figures))
    assert result.exit_code == 0, result.output
    assert "building it" in result.stderr
    assert json.loads(figures.read_text())["precision"] == "fp32"
    assert built(unbuilt) == [("onnxruntime", "fp32")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "has no onnxruntime int8 engine (built: none). Build it: arforge build '"),
        (("--target", "tensorrt"), "has no tensorrt fp16 engine (built: none). Build it: arforge build '"),
        (("--target", "tensorrt-rtx"), "has no tensorrt-rtx fp16 engine (built: none). Build it: arforge build '"),
    ],
)
def test_other_engines_are_asked_for(unbuilt: Path, options: tuple[str, ...], message: str) -> None:
    result = arforge("run", unbuilt, "--class", 1, "--tokens", unbuilt.with_name("t.npy"), *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert f"'{unbuilt}' --target {options[1] if options[0] == '--target' else 'onnxruntime'}" in result.stderr
    assert built(unbuilt) == []


@pytest.fixture
def sealed(unbuilt: Path) -> Iterator[Path]:
    """A bundle that may not be written to, by a user whom that binds."""
    folders = [unbuilt, *(path for path in unbuilt.rglob("*") if path.is_dir())]
    above = [unbuilt.parent, *unbuilt.parent.parents[:2]]
    modes = {folder: folder.stat().st_mode for folder in (*folders, *above)}
    for folder in above:
        folder.chmod(0o755)
    for folder in folders:
        folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield unbuilt
    os.seteuid(user)
    for folder, mode in modes.items():
        folder.chmod(mode)


def test_a_bundle_that_cannot_be_written_says_so(sealed: Path) -> None:
    # under a folder of the session's own, another user may not even read
    with pytest.raises((EngineError, BundleError), match=r"(cannot be built here: .*|cannot read .*)ermission"):
        engine.open_built(sealed, "onnxruntime", "fp32")


def test_a_bundle_that_another_process_changes_says_so(unbuilt: Path) -> None:
    with locked(unbuilt), pytest.raises(EngineError, match="cannot be built here: another process is changing"):
        engine.open_built(unbuilt, "onnxruntime", "fp32")


def test_an_engine_that_another_process_has_built_is_taken(
    unbuilt: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = [open_bundle(unbuilt), open_bundle(bundle), open_bundle(bundle)]
    monkeypatch.setattr(engine, "open_bundle", lambda path: finished.pop(0))
    with locked(unbuilt):
        assert engine.open_built(unbuilt, "onnxruntime", "fp32").engines


def test_building_and_running_agree_on_the_precision() -> None:
    assert set(DEFAULT_PRECISION) == set(TARGETS)
    help_of = {name: arforge(name, "--help").output for name in ("build", "run", "evaluate", "profile")}
    assert all(
        "[default: fp32, of TensorRT fp16; else blocks that are stored]" in " ".join(text.split())
        for text in help_of.values()
    )
    assert [default_precision(target) for target in TARGETS] == ["fp32", "fp16", "fp16"]
    assert [default_precision(target, "bf16") for target in TARGETS] == ["fp32", "fp16", "fp16"]
    assert [default_precision(target, "int8") for target in TARGETS] == ["int8", "fp16", "fp16"]
    assert [default_precision(target, "int4") for target in TARGETS] == ["int4", "int4", "int4"]
    with pytest.raises(EngineError, match="unknown target 'cuda': this arforge runs onnxruntime, tensorrt-rtx, tensor"):
        default_precision("cuda")


@pytest.mark.parametrize("command", ["run", "profile", "evaluate", "calibrate"])
def test_a_number_of_threads_has_a_bound(bundle: Path, command: str) -> None:
    result = arforge(command, bundle, "--threads", 100_000)
    assert result.exit_code == 1
    assert "100000 threads: use at least 1, and here at most" in result.stderr
