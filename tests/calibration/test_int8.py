"""Calibration of whole bundles: the graphs enter the bundle in one step, run, and are like float32."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arforge.calibration import int8
from arforge.calibration.int8 import Calibrated, CalibrationJob, calibrate
from arforge.calibration.quantize import write_graphs
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime
from arforge.engines.verify import verify_bundle
from arforge.runner import BundleError, Runner, open_bundle
from arforge.runner.bundle.writer import add_engine, changing
from arforge.runner.conditions import sample_subjects
from arforge.runner.errors import CalibrationError, EngineError

MAX = Rule("max", 100)
QUICK = {"schedules": ("zipar:2",), "samples": 2, "check": 0, "threads": 1}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibrated]:
    """The 8x8 bundle, calibrated with a report."""
    root = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("int8") / "whole.bundle"))
    job = CalibrationJob(root, Rule("percentile", 99.999), ("ntp", "zipar:2"), samples=4, check=3, trials=2, threads=1)
    return root, calibrate(job)


def test_the_bundle_has_int8_graphs_beside_what_it_had(whole: tuple[Path, Calibrated], bundle: Path) -> None:
    root, _ = whole
    opened, before = open_bundle(root), open_bundle(bundle)
    opened.check_hashes()
    for name in ("step", "step-logits"):
        assert opened.graph(name, "int8") == root / f"graphs/int8/{name}.onnx"
    weights = opened.files["graphs/int8/weights/model.weights"].bytes
    assert weights < 0.45 * before.files["graphs/fp32/weights/model.weights"].bytes
    files = {path for path in opened.files if not path.startswith("graphs/int8/")}
    assert {path: opened.files[path] for path in files} == before.files
    assert opened.engines == before.engines
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    assert sorted(contents(root)) == sorted([*opened.files, "manifest.json"])


def test_the_record_says_what_was_done(whole: tuple[Path, Calibrated]) -> None:
    root, done = whole
    record = json.loads((root / "graphs/int8/calibration.json").read_text())
    assert record == json.loads(json.dumps(done.record))
    assert record["requests"] == {
        "schedules": ["ntp", "zipar:2"],
        "classes": [0, 2, 5, 7],
        "seeds": [0, 1, 2, 3],
        "guidance": 2.0,
        "batch": 8,
    }
    assert (record["method"], record["percentile"], record["smooth"]) == ("percentile", 99.999, 0.75)
    assert len(record["limits"]) == 9
    assert all(limit > 0 for limit in record["limits"].values())
    files = open_bundle(root).files
    assert record["source"] == {path: files[path].sha256 for path in record["source"]}


def test_the_report_measures_held_out_images(whole: tuple[Path, Calibrated]) -> None:
    _, done = whole
    report = done.report
    assert done.layers == len(report.layers) == 11
    assert all(0 < error.error < 0.1 for error in report.layers)
    assert [found.schedule for found in report.agreement] == ["ntp", "zipar:2"]
    for found in report.agreement:
        assert found.tokens == 3 * 64
        assert 0.8 < found.top1 <= 1
        assert 0 < found.logit_error < 0.15
        assert 0 < report.same_tokens[found.schedule] <= 1
    worst = [error.layer for error in sorted(report.layers, key=lambda error: -error.error)][:2]
    assert [trial.excluded for trial in report.trials] == [(worst[0],), (worst[1],), tuple(worst)]
    for trial in report.trials:  # fewer layers in int8, less error
        assert trial.agreement.logit_error < report.agreement[0].logit_error
    assert report.trials[2].bytes_added == sum(trial.bytes_added for trial in report.trials[:2]) > 0


def test_int8_engines_build_run_and_verify(whole: tuple[Path, Calibrated], runner: Runner, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole[0], tmp_path / "built.bundle"))
    onnxruntime.build(root, "int8", quantization="static")
    lines: list[str] = []
    verify_bundle(root, lines.append)
    assert "engine onnxruntime int8: same tokens alone and in a batch" in lines
    with Runner.open(root, precision="int8", threads=1) as quantized:
        result = quantized.generate([1, 5], schedule="zipar:4", greedy=True)
    expected = runner.generate([1, 5], schedule="zipar:4", greedy=True)
    assert result.images is not None
    assert result.images.shape == (2, 16, 16, 3)
    assert (result.tokens == expected.tokens).mean() > 0.15  # chance is 1 in 32


@pytest.mark.parametrize(("name", "schedule"), [("par_bundle", "par:4"), ("arpg_bundle", "arpg:6")])
def test_every_family_calibrates(name: str, schedule: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "copy.bundle"))
    done = calibrate(CalibrationJob(root, MAX, (schedule,), samples=24, check=4, trials=0, threads=1, smooth=0.5))
    assert done.report.agreement[0].top1 > 0.6
    assert done.report.agreement[0].logit_error < 0.3
    assert max(error.error for error in done.report.layers) < 0.1
    assert done.report.trials == []
    onnxruntime.build(root, "int8", quantization="static")
    with Runner.open(root, precision="int8", threads=1) as runner:
        assert len(np.unique(runner.generate([0, 9], schedule=schedule).tokens)) > 5


def test_a_model_of_prompts_calibrates_on_given_ones(text_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "copy.bundle"))
    before = contents(root)
    job = CalibrationJob(root, MAX, ("ntp", "zipar:4"), samples=6, check=3, trials=0, threads=1)
    with pytest.raises(CalibrationError, match="takes prompts.*: give some of"):
        calibrate(job)
    assert contents(root) == before
    subjects = sample_subjects(open_bundle(root).model, 8)
    done = calibrate(replace(job, subjects=subjects))
    assert done.record["requests"]["features"] == 6
    for found in done.report.agreement:
        assert found.tokens == 3 * 64  # passes of prompts are no steps
        assert found.top1 > 0.7
        assert found.logit_error < 0.25
    assert max(error.error for error in done.report.layers) < 0.1
    for quantization in ("static", "blocks"):
        onnxruntime.build(root, "int8", quantization=quantization)
        lines: list[str] = []
        verify_bundle(root, lines.append)
        assert "engine onnxruntime int8: same tokens alone and in a batch" in lines
        with Runner.open(root, precision="int8", threads=1) as runner:
            tokens = runner.generate(**subjects.take(range(3)), schedule="zipar:4").tokens
        assert len(np.unique(tokens)) > 5


def test_the_same_calibration_gives_the_same_bytes_and_keeps_engines(bundle_copy: Path) -> None:
    job = CalibrationJob(bundle_copy, MAX, **QUICK)
    calibrate(job)
    onnxruntime.build(bundle_copy, "int8", quantization="static")
    first = contents(bundle_copy)
    assert calibrate(job).stale == ()
    again = contents(bundle_copy)
    assert json.loads(again.pop("manifest.json")) == json.loads(first.pop("manifest.json"))  # not their order
    assert again == first
    Runner.open(bundle_copy, precision="int8", threads=1).close()


def test_another_calibration_replaces_the_graphs_and_drops_their_engine(bundle_copy: Path) -> None:
    calibrate(CalibrationJob(bundle_copy, MAX, **QUICK))
    onnxruntime.build(bundle_copy, "int8", quantization="static")
    first = contents(bundle_copy)
    done = calibrate(CalibrationJob(bundle_copy, MAX, **QUICK, seed=5, smooth=0, exclude=("output", "layers.1.*")))
    assert done.stale == ("onnxruntime int8 for cpu",)
    assert done.layers == 5
    assert done.excluded == tuple(sorted(done.excluded))
    assert "output" in done.excluded
    assert done.smoothed == 0
    opened = open_bundle(bundle_copy)
    opened.check_hashes()
    after = contents(bundle_copy)
    assert not any("int8" in path for path in after if path.startswith("engines/"))
    assert {path for path in first if first[path] == after.get(path)} == {
        path for path in first if "int8" not in path and path != "manifest.json"
    }
    assert len([entry for entry in opened.graphs if entry.precision == "int8"]) == 2
    with pytest.raises(EngineError, match="arforge build .* --target onnxruntime --precision int8"):
        Runner.open(bundle_copy, precision="int8")


def test_a_failure_leaves_the_bundle_as_it_was(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(CalibrationJob(bundle_copy, MAX, **QUICK))
    first = contents(bundle_copy)

    def fail(*arguments: object) -> list[str]:
        write_graphs(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(int8, "write_graphs", fail)
    with pytest.raises(KeyboardInterrupt):
        calibrate(CalibrationJob(bundle_copy, MAX, **QUICK, seed=5))
    assert contents(bundle_copy) == first
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_a_bundle_that_changes_meanwhile_is_left_alone(bundle_copy: Path) -> None:
    def build_meanwhile(*_: object) -> None:
        bundle = open_bundle(bundle_copy)
        if not bundle.engine("onnxruntime", "fp32")["widths"]:  # by someone who heeds no lock
            engine = bundle.engines[0]
            add_engine(bundle, replace(engine, path="engines/other"), {**bundle.identity(engine), "widths": [8]})

    with pytest.raises(BundleError, match="has changed meanwhile: calibrate it again"):
        calibrate(CalibrationJob(bundle_copy, MAX, **QUICK), build_meanwhile)
    opened = open_bundle(bundle_copy)
    assert opened.engine("onnxruntime", "fp32")["widths"] == [8]
    assert not any(entry.precision == "int8" for entry in opened.graphs)


def test_two_at_once_are_one_too_many(bundle_copy: Path) -> None:
    with changing(bundle_copy), pytest.raises(BundleError, match="another process is changing .*: wait until it is"):
        calibrate(CalibrationJob(bundle_copy, MAX, **QUICK))


def test_a_bundle_without_float32_graphs_is_refused(bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    for entry in manifest["graphs"]:
        entry["precision"] = "fp16"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no fp32 graph 'step-logits'"):
        calibrate(CalibrationJob(bundle_copy, MAX, **QUICK))


def test_excluding_everything_is_refused_before_anything_runs(bundle_copy: Path) -> None:
    def ran(*_: object) -> None:
        pytest.fail("it ran")

    with pytest.raises(CalibrationError, match="every layer is excluded"):
        calibrate(replace(CalibrationJob(bundle_copy, MAX, **QUICK), exclude=("*",)), ran)
