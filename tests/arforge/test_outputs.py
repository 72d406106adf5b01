"""Where commands write: tried before the work, streamed, and whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.runner import Runner
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.errors import Cancelled


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("run", "--class", "0"), "--tokens"),
        (("run", "--class", "0"), "--output"),
        (("run", "--class", "0"), "--npz"),
        (("run", "--class", "0", "--tokens", os.devnull), "--preview"),
        (("evaluate", "--reference", "images"), "--json"),
        (("evaluate", "--reference", "images"), "--plot"),
        (("profile",), "--json"),
        (("profile",), "--html"),
        (("calibrate",), "--json"),
        (("schedule", "ntp", "--grid", "4x4"), "--json"),
        (("schedule", "ntp", "--grid", "4x4"), "--plot"),
        (("schedule", "ntp", "--grid", "4x4"), "--gif"),
    ],
)
def test_outputs_are_tried_before_the_work(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], option: str
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for place in ("arforge.runner.runner.open_engine", "arforge.calibration.int8.calibrate"):
        monkeypatch.setattr(place, work)
    name, *words = command
    subject = [] if name == "schedule" else [bundle]
    code, output = invoke(name, *subject, *words, option, tmp_path / "missing/x")
    assert (code, output.count("\n")) == (1, 1), output
    assert "missing/x: No such file or directory (make the folder " in output


def test_two_outputs_need_two_names(bundle: Path, tmp_path: Path) -> None:
    code, output = invoke("run", bundle, "--class", "0", "--npz", tmp_path / "x", "--tokens", tmp_path / "x")
    assert code == 1
    assert "--npz and --tokens both write" in output


def test_images_are_written_as_they_come(
    bundle: Path, tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No array of all images is made: the largest part that anything sees is one batch."""
    seen: list[int] = []
    really = Runner.generate

    def generate(self: Runner, *given: Any, **options: Any) -> Any:
        receive = options["images"]
        options["images"] = lambda images: (seen.append(len(images)), receive(images))
        result = really(self, *given, **options)
        assert result.images is None
        return result

    monkeypatch.setattr(Runner, "generate", generate)
    npz, page = tmp_path / "images.npz", tmp_path / "page.png"
    words = ("--class", "0-4", "--seed", "7", "--batch", "2", "--schedule", "zipar:2", "--threads", "1", "--quiet")
    code, output = invoke("run", bundle, *words, "--npz", npz, "--output", page, "--columns", "5")
    assert code == 0, output
    assert seen == [2, 2, 1]
    monkeypatch.undo()
    expected = runner.generate(list(range(5)), list(range(7, 12)), schedule="zipar:2").images
    assert expected is not None
    with np.load(npz) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], expected)


def test_a_run_that_is_cut_leaves_nothing_under_the_names(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.npz").write_bytes(b"old")
    really, steps = OnnxRuntimeEngine.run, 0

    def run(self: OnnxRuntimeEngine, width: int, queries: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 30:  # in the second image
            raise Cancelled("stop")
        really(self, width, queries)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    words = ("--class", "0-2", "--batch", "1", "--schedule", "zipar:2", "--threads", "1", "--quiet")
    code, output = invoke(
        "run", bundle, *words, "--npz", tmp_path / "old.npz", "--tokens", tmp_path / "t", "--output", tmp_path / "o"
    )
    assert code == 1
    assert "stop" in output
    assert steps == 30
    assert [path.name for path in tmp_path.iterdir()] == ["old.npz"]
    assert (tmp_path / "old.npz").read_bytes() == b"old"


def test_names_that_are_no_text_work_or_are_refused_in_one_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / os.fsdecode(b"\xff")
    words = ("--class", "0", "--schedule", "zipar:2", "--threads", "1", "--quiet")
    code, output = invoke("run", bundle, *words, "--tokens", name)
    assert code == 0, output
    assert np.load(name).shape == (1, 64)
    monkeypatch.chdir(tmp_path)
    for command in ("run", "inspect", "build", "verify", "calibrate", "profile"):
        code, output = invoke(command, name, *(("--class", "0", "--tokens", "t") if command == "run" else ()))
        assert (code, output.count("\n")) == (1, 1), output
        assert output.startswith("Error: ")


@pytest.mark.skipif(os.name != "posix", reason="needs modes")
def test_a_system_error_is_one_line(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("arforge.runner.runner.open_engine", denied)
    code, output = invoke("run", bundle, "--class", "0", "--tokens", tmp_path / "t")
    assert (code, output) == (1, f"Error: cannot use {tmp_path / 'x'}: Permission denied\n")
