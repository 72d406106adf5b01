from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_jetson import make_sysfs

from arforge.cli import main


def arforge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def outputs(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict, str]:
    folder = tmp_path_factory.mktemp("profile")
    quality = {"measure": "a distance", "schedules": [{"schedule": "zipar:2", "frechet_distance_x": 7.5}]}
    (folder / "quality.json").write_text(json.dumps(quality))
    result = arforge(
        *("profile", bundle, "--schedule", "ntp", "--schedule", "zipar:2", "--batch", 2, "--repeats", 2, "--layers"),
        *("--threads", 1, "--json", folder / "p.json", "--html", folder / "p.html"),
        *("--quality", folder / "quality.json", "--sysfs", make_sysfs(folder / "sys")),
    )
    assert result.exit_code == 0, result.output
    return result.output, json.loads((folder / "p.json").read_text()), (folder / "p.html").read_text("utf-8")


def test_json_holds_what_every_figure_was_taken_with(outputs: tuple[str, dict, str]) -> None:
    _, figures, _ = outputs
    assert figures["device"]
    assert {"arforge", "python", "numpy", "onnxruntime"} == set(figures["versions"])
    assert (figures["target"], figures["precision"], figures["batch"]) == ("onnxruntime", "fp32", 2)
    assert figures["streaming_bytes_per_second"] > 1e8
    assert 0 < figures["load_seconds"] < figures["first_step_seconds"]
    assert figures["peak_memory_bytes"] > 1 << 24
    first, second = figures["schedules"]
    assert (first["schedule"], first["steps"], second["schedule"], second["steps"]) == ("ntp", 64, "zipar:2", 28)
    assert set(first["ms_per_step"]) == {"median", "p95", "p99"}
    assert first["ms_per_image"] == pytest.approx(first["ms_per_image_tokens"] + first["ms_per_image_decoder"])
    assert second["steps_saved"] == 1 - 28 / 64
    assert sum(part["steps"] for part in second["ms_per_step_by_width"]) == 28
    assert len(second["step_ms"]) == 28
    assert 0 < first["bandwidth_share"] < 1
    operators = {row["operator"] for row in figures["operators"]["times"]}
    assert {"MatMul", "Attention", "TensorScatter"} <= operators


def test_table_has_a_line_a_schedule(outputs: tuple[str, dict, str]) -> None:
    text, *_ = outputs
    assert re.search(r"^ntp +64 +[\d.]+ ", text, flags=re.MULTILINE)
    assert re.search(r"^zipar:2 +28 +[\d.]+ ", text, flags=re.MULTILINE)
    assert re.search(r"^  MatMul +\d+ +[\d.]+ +[\d.]+%$", text, flags=re.MULTILINE)
    assert "memory streams" in text
    assert "peak memory" in text


def test_page_is_whole_and_needs_nothing_else(outputs: tuple[str, dict, str]) -> None:
    *_, page = outputs
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == page.count("</svg>") == 4
    assert "<td>VDD_IN</td>" in page
    for heading in (
        "Power, clocks and temperatures",
        "Schedules",
        "along the schedule",
        "by width",
        "of an image goes",
        "by operator",
        "against latency",
    ):
        assert heading in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "<td>zipar:2</td>" in page


def test_power_is_that_of_the_board(outputs: tuple[str, dict, str]) -> None:
    text, figures, _ = outputs
    for row in figures["schedules"]:
        assert row["watts"] == pytest.approx(9.25)
        seconds = (row["ms_per_image"] + row["ms_to_filled_caches"] / row["batch"]) / 1000
        assert row["joules_per_image"] == pytest.approx(9.25 * seconds, rel=1e-6)
        assert row["sensors"]["samples"] >= 2
        assert row["sensors"]["megahertz"]["17000000.gpu"] == {"mean": 624.75, "least": 624.75, "largest": 624.75}
        assert row["sensors"]["throttled"] == {"devfreq-17000000.gpu": 1.0}
        assert row["sensors"]["events"] == {"oc2": 0, "oc3": 0}
    assert "ntp: clocks were held down: devfreq-17000000.gpu in 100 % of the samples" in text


def test_a_profile_is_shown_again(outputs: tuple[str, dict, str], tmp_path: Path) -> None:
    text, figures, _ = outputs
    (tmp_path / "p.json").write_text(json.dumps(figures))
    result = arforge("profile", "--read", tmp_path / "p.json", "--html", tmp_path / "p.html")
    assert result.exit_code == 0, result.output
    assert text[text.index("loaded in") :] in result.output
    assert (tmp_path / "p.html").read_text("utf-8").count("<svg") == 3  # all but quality
    (tmp_path / "other.json").write_text('{"schedules": [{"steps": 1}]}')
    for words, message in (
        (("--read", tmp_path / "other.json"), "holds no profile"),
        (("--read", tmp_path / "missing.json"), "cannot read"),
        (("--read", tmp_path / "p.json", "--layers"), "leave --json and --layers out"),
        ((), "name a BUNDLE to measure"),
    ):
        refused = arforge("profile", *words)
        assert refused.exit_code in (1, 2)
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--schedule", "zipar:9"), "window 9 does not fit"),
        (("--schedule", "par:4"), "decodes in regions order, this model in raster order"),
        (("--precision", "int8"), "has no onnxruntime int8 engine"),
        (("--target", "abacus"), "unknown target 'abacus'"),
        (("--quality", "missing.json"), "--quality is drawn on the page"),
        (("--quality", "missing.json", "--html", "p.html"), "cannot read missing.json"),
        (("--target", "tensorrt-rtx", "--layers"), "--layers reads ONNX Runtime's profiler"),
        (("--json", "missing/p.json", "--max-steps", 1, "--schedule", "ntp"), "cannot write missing/p.json"),
    ],
)
def test_what_cannot_be_profiled_is_one_clear_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = arforge("profile", bundle, *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_quality_file_without_distances_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text("{}")
    result = arforge("profile", bundle, "--html", tmp_path / "p.html", "--quality", tmp_path / "q.json")
    assert "the quality file holds no distances" in result.stderr
    assert not (tmp_path / "p.html").exists()
