from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from arforge.cli import main


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


def test_it_reports_and_says_what_comes_next(bundle_copy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = calibrate(
        *(bundle_copy, "--schedule", "zipar:2", "--samples", 2, "--check", 2, "--trials", 1),
        *("--exclude", "output", "--smooth", 0.5, "--quiet", "--json", report),
    )
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "10 layers in int8, 1 left in fp32; ranges by max, 6 activations smoothed by 0.5" in text
    assert "2 images by each of zipar:2; guidance 2, seeds 0 to 1; onnxruntime" in text
    assert f"next: arforge build {bundle_copy} --precision int8 --quantization static," in text
    assert f"arforge evaluate {bundle_copy}" in text
    facts = json.loads(report.read_text())
    assert facts["bundle"] == bundle_copy.name
    found = facts["report"]["agreement"][0]
    assert f"{100 * found['top1']:.1f} %  {100 * found['logit_error']:9.2f} %" in text
    worst = max(facts["report"]["layers"], key=lambda error: error["error"])
    assert f"{100 * worst['error']:.2f}%" in text
    assert facts["report"]["trials"][0]["excluded"] == [worst["layer"]]
    assert facts["excluded"] == ["output"]
    assert result.stderr == ""


def test_without_a_check_it_only_calibrates(bundle_copy: Path) -> None:
    result = calibrate(bundle_copy, "--schedule", "zipar:2", "--samples", 1, "--check", 0, "--method", "entropy")
    assert result.exit_code == 0, result.output
    assert "ranges by entropy" in result.stdout
    assert "worst layers" not in result.stdout
    assert "histograms, zipar:2" in result.stderr


def test_a_model_of_prompts_takes_features_or_prompts(text_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "text.bundle"))
    quick = ("--schedule", "zipar:4", "--samples", 2, "--check", 0, "--quiet")
    for arguments, message in (
        ((), "takes prompts, and from made-up ones its ranges would be others: give some of"),
        (("--class", 1), "takes prompts, not classes"),
        (("--prompt", "a cat"), "has no text encoder"),
    ):
        result = calibrate(root, *quick, *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((3, 7, 48), np.float32))
    result = calibrate(root, *quick, "--features", tmp_path / "features.npy")
    assert result.exit_code == 0, result.output
    assert "2 images by each of zipar:4; guidance 7.5" in result.stdout
    record = json.loads((root / "graphs/int8/calibration.json").read_text())
    assert record["requests"]["features"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samples", 0), "no samples: calibration needs at least one image"),
        (("--method", "minmax"), "unknown method 'minmax': use max, percentile, entropy"),
        (("--method", "percentile", "--percentile", 1), "percentile 1.0 is out of range"),
        (("--schedule", "par:4"), "decodes in regions order, this model in raster order"),
        (("--schedule", "zipar:9"), "window 9 does not fit a grid of 8x8"),
        (("--exclude", "layers.9.*"), "no layer is called 'layers.9.*'"),
        (("--exclude", "*"), "every layer is excluded"),
        (("--smooth", 1.5), "smoothing 1.5 is out of range"),
        (("--guidance", 0.5), "guidance 0.5 is out of range"),
        (("--batch", 0), "batch 0 is out of range"),
        (("--seed", -1), "seed -1 is out of range"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(bundle: Path, arguments: tuple[object, ...], message: str) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = calibrate(bundle, "--schedule", "zipar:2", "--samples", 1, "--quiet", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    assert "no bundle at" in calibrate(tmp_path / "none.bundle").stderr
