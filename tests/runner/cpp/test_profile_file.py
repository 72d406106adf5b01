"""`arforge-run --profile` writes what `arforge profile --json` writes, and Python shows it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_jetson import make_nvml, make_sysfs

from arforge.cli import main

SAME = ("schedule", "steps", "measured_steps", "repeats", "batch", "rows", "prompt_slots", "step_widths")
TRAFFIC = ("weight_bytes_per_step", "cache_bytes_per_step")


def profiled(release: Any, bundle: Path, folder: Path, *words: Any, **environment: str) -> dict[str, Any]:
    path = folder / "cpp.json"
    command = [release.program("arforge-run"), bundle, *words, "--threads", 1, "--quiet", "--profile", path]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def python(bundle: Path, folder: Path, *words: Any) -> dict[str, Any]:
    path = folder / "python.json"
    command = ["profile", bundle, *words, "--threads", 1, "--json", path]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    ("kind", "schedule", "operations"),
    [
        ("bundle", "ntp", True),
        ("bundle", "zipar:2", True),
        ("arpg_bundle", "arpg:5", True),
        ("bundle", "jacobi:8", False),
    ],
)
def test_both_languages_write_the_same_keys_and_counts(
    release: Any, tmp_path: Path, request: pytest.FixtureRequest, kind: str, schedule: str, operations: bool
) -> None:
    bundle, sysfs = request.getfixturevalue(kind), make_sysfs(tmp_path / "sys")
    common = ("--schedule", schedule, "--warm-ups", 0, "--repeats", 2, "--guidance", 2, "--sysfs", sysfs)
    ours = profiled(release, bundle, tmp_path, "--class", "0,1", "--seed", 0, *common)
    theirs = python(bundle, tmp_path, "--batch", 2, "--class", "0,1", *common)
    assert set(ours) == set(theirs)
    assert {"arforge", "compiler", "onnxruntime"} == set(ours["versions"])
    for name in ("bundle", "family", "variant", "target", "precision", "threads", "batch", "guidance", "repeats"):
        assert ours[name] == theirs[name], name
    (row,), (other,) = ours["schedules"], theirs["schedules"]
    assert set(row) == set(other)
    for name in SAME + (TRAFFIC if operations else ()):
        assert row[name] == other[name], name
    assert row["weight_bytes_per_step"] == other["weight_bytes_per_step"]
    for part, wanted in zip(row["ms_per_step_by_width"], other["ms_per_step_by_width"], strict=True):
        assert set(part) == set(wanted)
        for name in ("width", "queries", "steps"):
            assert part.get(name) == wanted.get(name)
    if operations:  # of the same calls: so much work an image
        for one in (row, other):
            one["work"] = one["operations_per_second"] * one["ms_per_image_tokens"]
        assert row["work"] == pytest.approx(other["work"], rel=0.3)  # medians of sums beside sums of medians
    assert row["ms_per_image"] == pytest.approx(row["ms_per_image_tokens"] + row["ms_per_image_decoder"])
    assert 0 < row["engine_share"] < 1
    assert row["bytes_per_second"] / ours["streaming_bytes_per_second"] == pytest.approx(row["bandwidth_share"])
    assert ours["peak_memory_bytes"] > 1 << 24
    assert 0 < ours["load_seconds"] < ours["first_step_seconds"]
    assert row["watts"] == other["watts"] == pytest.approx(9.25)
    for name in ("milliwatts", "megahertz", "celsius", "throttled", "events"):
        assert row["sensors"][name] == other["sensors"][name], name
    assert row["joules_per_image"] * 2 == pytest.approx(
        9.25 * (2 * row["ms_per_image"] + row["ms_to_filled_caches"]) / 1000
    )


def test_prompts_are_counted(release: Any, text_bundle: Path, tmp_path: Path) -> None:
    import numpy as np

    from arforge.runner import open_bundle
    from arforge.runner.conditions import sample_features

    features = sample_features(open_bundle(text_bundle).model, 2)
    longest = max(map(len, features))
    array = np.zeros((2, longest, features[0].shape[1]), np.float32)
    mask = np.zeros((2, longest), np.int64)
    for index, one in enumerate(features):
        array[index, : len(one)], mask[index, : len(one)] = one, 1
    np.save(tmp_path / "f.npy", array)
    np.save(tmp_path / "m.npy", mask)
    words = ("--features", tmp_path / "f.npy", "--features-mask", tmp_path / "m.npy", "--schedule", "ntp")
    (row,) = profiled(release, text_bundle, tmp_path, *words, "--repeats", 1, "--sysfs", tmp_path)["schedules"]
    shown = python(text_bundle, tmp_path, "--features", tmp_path / "f.npy", "--features-mask", tmp_path / "m.npy",
                   "--schedule", "ntp", "--repeats", 1, "--batch", 2, "--sysfs", tmp_path)["schedules"][0]  # fmt: skip
    assert row["prompt_slots"] == shown["prompt_slots"] > 0
    assert row["cache_bytes_per_step"] == shown["cache_bytes_per_step"]
    assert row["ms_to_filled_caches"] > 0


def test_python_shows_a_profile_of_the_cpp_runner(release: Any, bundle: Path, tmp_path: Path) -> None:
    words = ("--class", 1, "--schedule", "zipar:2", "--repeats", 1, "--sysfs", make_sysfs(tmp_path / "sys"))
    profiled(release, bundle, tmp_path, *words, "--tokens", tmp_path / "t.npy", "--output", tmp_path / "i.ppm")
    assert (tmp_path / "i.ppm").stat().st_size > 16 * 16 * 3
    command = ["profile", "--read", str(tmp_path / "cpp.json"), "--html", str(tmp_path / "page.html")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "zipar:2: clocks were held down: devfreq-17000000.gpu in 100 % of the samples" in result.output
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<td>VDD_IN</td>" in page
    assert page.count("<svg") == 2


def test_a_gpu_is_asked_by_nvml_in_both(release: Any, bundle: Path, tmp_path: Path) -> None:
    make_nvml(tmp_path)
    (tmp_path / "sys").mkdir()
    words = ("--class", 1, "--schedule", "zipar:2", "--repeats", 1, "--sysfs", tmp_path / "sys")
    found = profiled(release, bundle, tmp_path, *words, LD_LIBRARY_PATH=str(tmp_path))
    (row,) = found["schedules"]
    assert row["watts"] == 61.5
    assert row["sensors"]["throttled"] == {"hardware thermal slowdown": 1.0, "software power cap": 1.0}
    assert row["sensors"]["megahertz"]["gpu memory"]["mean"] == 9501
    nothing = profiled(release, bundle, tmp_path, *words, LD_LIBRARY_PATH=str(tmp_path), FAILING="nvmlInit_v2")
    assert nothing["schedules"][0]["watts"] is nothing["schedules"][0]["sensors"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class", "0-3", "--batch", 2), "4 images are more than 2"),
        (("--class", 1, "--grid", "9x9"), "a profile measures whole images"),
        (("--class", 1, "--repeats", 0), "0 is less than 1"),
        (("--class", 1, "--preview", "x.ppm"), "leave one out"),
    ],
)
def test_what_cannot_be_profiled_is_said(
    release: Any, arpg_bundle: Path, tmp_path: Path, words: tuple[Any, ...], message: str
) -> None:
    command = [release.program("arforge-run"), arpg_bundle, *words, "--profile", tmp_path / "p.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
