"""`arforge-run --profile` of TensorRT's engines, on the stand-in: what `arforge profile` writes of the same engine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_gpu import RTX, FakeGpu, fake_library
from fake_jetson import make_nvml, make_sysfs
from tensorrt_pairs import StandIn, StandIns, version_of

from arforge.cli import main
from arforge.runner import open_bundle
from arforge.runner.backends import tensorrt_engine
from arforge.runner.conditions import sample_features

SAME = ("bundle", "family", "variant", "target", "precision", "batch", "guidance", "warm_ups", "repeats")
COUNTED = (
    "schedule", "steps", "measured_steps", "repeats", "batch", "rows", "prompt_slots", "step_widths",
    "weight_bytes_per_step", "cache_bytes_per_step", "watts",
)  # fmt: skip


def profiled(stand_in: StandIn, path: Path, precision: str, file: Path, *words: Any, **more: str) -> dict[str, Any]:
    command = [stand_in.build.program("arforge-run"), path, "--target", RTX, "--precision", precision, *words]
    command += ["--quiet", "--profile", file]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **more}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def python(monkeypatch: pytest.MonkeyPatch, path: Path, precision: str, file: Path, *words: Any) -> dict[str, Any]:
    """On a GPU that is not there."""
    bundle, gpu = open_bundle(path), FakeGpu()
    library = fake_library(gpu, version_of(path, precision))
    for identity in bundle.identities(RTX, precision):
        library.trt.add(bundle, identity)
    monkeypatch.setattr(tensorrt_engine, "Gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_engine, "load_library", lambda target: replace(library, target=target))
    command = ["profile", path, "--target", RTX, "--precision", precision, *words, "--threads", 1, "--json", file]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def features_files(path: Path, folder: Path) -> tuple[Any, ...]:
    """Two prompts of unequal lengths."""
    features = sample_features(open_bundle(path).model, 2)
    array = np.zeros((2, max(map(len, features)), features[0].shape[1]), np.float32)
    mask = np.zeros(array.shape[:2], np.int64)
    for index, one in enumerate(features):
        array[index, : len(one)], mask[index, : len(one)] = one, 1
    np.save(folder / "features.npy", array)
    np.save(folder / "mask.npy", mask)
    return ("--features", folder / "features.npy", "--features-mask", folder / "mask.npy")


@pytest.mark.parametrize(
    ("kind", "precision", "schedule"),
    [
        ("classes", "fp32", "zipar:2"),
        ("classes", "int8", "ntp"),
        ("jacobi", "fp32", "jacobi:6"),
        ("views", "fp16", "zipar:2"),
        ("views-prompts", "fp16", "zipar:2"),
    ],
)
def test_both_languages_write_the_same_keys_and_counts(
    stand_in: StandIn,
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    precision: str,
    schedule: str,
) -> None:
    path, sysfs = stand_ins(kind, precision), make_sysfs(tmp_path / "sys")
    asked = features_files(path, tmp_path) if "prompts" in kind else ("--class", "0,1")
    common = (*asked, "--schedule", schedule, "--warm-ups", 0, "--repeats", 2, "--guidance", 2, "--sysfs", sysfs)
    ours = profiled(stand_in, path, precision, tmp_path / "ours.json", *common, "--seed", 0)
    theirs = python(monkeypatch, path, precision, tmp_path / "theirs.json", *common, "--batch", 2)
    assert set(ours) == set(theirs)
    for name in SAME:
        assert ours[name] == theirs[name], name
    assert ours["versions"].keys() == {"arforge", "compiler", "onnxruntime", RTX}
    assert ours["versions"][RTX] == version_of(path, precision)
    assert ours["streaming_bytes_per_second"] is None  # the GPU's, which this runner does not measure
    (row,), (other,) = ours["schedules"], theirs["schedules"]
    assert set(row) == set(other)
    for name in COUNTED:
        assert row[name] == other[name], name
    assert row["bandwidth_share"] is None
    assert 0 < row["engine_share"] < 1
    assert 0 < ours["load_seconds"] < ours["first_step_seconds"]
    assert (row["ms_per_image_decoder"] is None) == (other["ms_per_image_decoder"] is None)
    assert row["ms_per_image"] == pytest.approx(row["ms_per_image_tokens"] + (row["ms_per_image_decoder"] or 0))
    counts = [[(part["width"], part["steps"]) for part in one["ms_per_step_by_width"]] for one in (row, other)]
    assert counts[0] == counts[1]


def test_the_gpu_is_named_by_nvml_and_python_shows_the_profile(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path
) -> None:
    make_nvml(tmp_path)
    (tmp_path / "sys").mkdir()
    words = ("--class", 1, "--schedule", "zipar:2", "--repeats", 1, "--sysfs", tmp_path / "sys")
    path, file = stand_ins("classes"), tmp_path / "cpp.json"
    found = profiled(stand_in, path, "fp32", file, *words, LD_LIBRARY_PATH=str(tmp_path))
    assert found["schedules"][0]["watts"] == 61.5
    nothing = profiled(stand_in, path, "fp32", file, *words, LD_LIBRARY_PATH=str(tmp_path), FAILING="nvmlInit_v2")
    assert nothing["device"] == "a GPU that NVML does not name"
    assert found["device"] != nothing["device"]
    result = CliRunner().invoke(main, ["profile", "--read", str(file), "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert "tensorrt-rtx fp32" in result.output
    assert (tmp_path / "page.html").read_text("utf-8").count("<svg") >= 1
