"""The demo: its training script from end to end on made-up data, and the weights that ship."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from arforge.calibration.quality.classifier import Classifier
from arforge.calibration.quality.evaluation import DISTANCE
from arforge.engines import onnxruntime
from arforge.engines.onnxruntime_job import QUANTIZATIONS
from arforge.export.config import read_config
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families import FAMILIES
from arforge.runner import Runner
from arforge.runner.backends.onnxruntime_session import open_session

FASHION = Path(__file__).parent.parent.parent / "examples/fashion"
CHECKPOINTS = FASHION / "checkpoints"
# Family -> schedules tried; the best guidance is the first one's.
SHIPPED = {"llamagen": ("ntp", "zipar:4"), "par": ("par:4",), "arpg": ("arpg:8", "arpg:16")}
NAMES = ("tokenizer.safetensors", "classifier.safetensors", *(f"{family}.safetensors" for family in SHIPPED))
SAMPLES = 200


def write_split(folder: Path, split: str, count: int) -> None:
    """An idx pair like Fashion-MNIST's: bright squares whose place is their class."""
    images = np.zeros((count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8, 5:20] = 200
    (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))


def test_training_script_makes_checkpoints_that_export(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 130)
    write_split(tmp_path, "t10k", 20)
    made = tmp_path / "checkpoints"
    steps = ("--tokenizer-steps", "5", "--model-steps", "2", "--classifier-steps", "3")
    places = ("--data", tmp_path, "--work", tmp_path / "work", "--checkpoints", made)
    command = [sys.executable, FASHION / "train.py", "all", *places, *steps]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    for name in SHIPPED:
        family = FAMILIES[name]
        config = read_config(made / f"{name}.json", family)
        output = tmp_path / f"{name}.bundle"
        export_bundle(ExportJob(family, config, made / f"{name}.safetensors", made / "tokenizer.safetensors", output))
        onnxruntime.build(output)
        with Runner.open(output) as runner:
            images = runner.generate([0, 9], schedule=family.schedules(config)[-1]).images
        assert images is not None
        assert images.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("family", SHIPPED)
def test_training_goes_on_from_shipped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    import model
    import train

    write_split(tmp_path, "train", 8)
    monkeypatch.setattr(model, "BATCH", 4)
    shipped = load_file(CHECKPOINTS / f"{family}.safetensors")
    places = ("--data", tmp_path, "--start", CHECKPOINTS, "--model-steps", 2, "--threads", 1)
    for rate in (0.0, 1e-3):
        made = tmp_path / f"made-{rate}"
        words = (family, *places, "--checkpoints", made, "--work", tmp_path / f"work-{rate}", "--peak-rate", rate)
        result = CliRunner().invoke(train.main, [str(word) for word in words], catch_exceptions=False)
        assert "model 0/2 loss" in result.output
        found = load_file(made / f"{family}.safetensors")
        assert found.keys() == shipped.keys()
        same = [torch.equal(found[name], shipped[name]) for name in shipped]
        assert all(same) if rate == 0 else not any(same[:3])
        config, kept = (json.loads((folder / f"{family}.json").read_text()) for folder in (made, CHECKPOINTS))
        assert config == kept


def test_training_script_says_where_the_data_comes_from(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(FASHION / "train.py"),
        "classifier",
        "--data",
        str(tmp_path),
        "--work",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "apt-get install dataset-fashion-mnist" in done.stderr


def test_shipped_weights_are_small_and_whole() -> None:
    shared = sum((CHECKPOINTS / name).stat().st_size for name in NAMES[:2])
    for family in SHIPPED:
        assert shared + (CHECKPOINTS / f"{family}.safetensors").stat().st_size < 15e6
    for name in NAMES:
        tensors = load_file(CHECKPOINTS / name)
        assert tensors
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


@pytest.mark.parametrize("family", SHIPPED)
def test_kept_figures_hold_the_bar(family: str) -> None:
    facts = json.loads((CHECKPOINTS / f"{family}.figures.json").read_text())
    assert facts["samples"] == 1000
    first = SHIPPED[family][0]
    best = facts["figures"][f"{first}, guidance {facts['best guidance']:g}"]
    assert best >= 0.85
    assert best == max(share for name, share in facts["figures"].items() if name.startswith(f"{first}, "))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a shipped checkpoint, exported once."""

    @cache
    def export(family: str) -> Path:
        output = tmp_path_factory.mktemp(family) / "fashion.bundle"
        config = read_config(CHECKPOINTS / f"{family}.json", FAMILIES[family])
        weights = CHECKPOINTS / f"{family}.safetensors"
        export_bundle(ExportJob(FAMILIES[family], config, weights, CHECKPOINTS / "tokenizer.safetensors", output))
        onnxruntime.build(output)
        return output

    return export


@pytest.mark.parametrize("family", SHIPPED)
def test_shipped_model_still_makes_its_classes(
    bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    import evaluate

    facts = json.loads((CHECKPOINTS / f"{family}.figures.json").read_text())
    guidance = facts["best guidance"]
    with Runner.open(bundles(family)) as runner:
        for schedule in SHIPPED[family]:
            share = evaluate.class_accuracy(runner, evaluate.load_classifier(), SAMPLES, schedule, guidance)
            kept = facts["figures"][f"{schedule}, guidance {guidance:g}"]
            # the kept figure is of 1,000 samples: three standard errors of this smaller sample apart at most
            assert abs(share - kept) < 3 * (kept * (1 - kept) / SAMPLES) ** 0.5 + 1e-9


def test_shipped_judge_is_the_trained_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    import classifier as judge
    import data

    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    with torch.no_grad():
        expected = judge.load(CHECKPOINTS / "classifier.safetensors")(judge.prepare(torch.from_numpy(images))).numpy()
    session = open_session(CHECKPOINTS / "classifier.onnx", threads=1)
    (scores,) = session.run(None, {session.get_inputs()[0].name: data.rgb(images)})
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert expected.std() > 0.1
    made = Classifier(CHECKPOINTS / "classifier.onnx", (32, 32), 10, threads=1)
    assert (made.predict(data.rgb(images)) == expected.argmax(axis=1)).all()


def test_quality_script_measures_resumes_times_and_renders(
    bundles: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    import quality

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(quality.main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.setattr(quality, "GUIDANCE", (1.0, 3.0))
    monkeypatch.setattr(quality, "TIMED_IMAGES", 4)
    write_split(tmp_path, "train", 20)
    write_split(tmp_path, "t10k", 20)
    file, output = tmp_path / "quality.json", bundles("par").parent
    command = ("measure", "--family", "par", "--samples", 12, "--guidance-samples", 5, "--threads", 1)
    places = ("--json", file, "--output", output)
    assert len(run(*command, *places, "--data", tmp_path).splitlines()) == 5  # two floors, two guidances, par:4
    figures = json.loads(file.read_text())
    assert [entry["set"] for entry in figures["floor"]] == ["train-0", "train-0, through the tokenizer"]
    (row,) = figures["schedules"]
    distances = {found["guidance"]: found[DISTANCE] for found in figures["guidance"]}
    assert set(distances) == {1.0, 3.0}
    assert row["guidance"] == min(distances, key=lambda guidance: distances[guidance])
    assert (row["steps"], row["samples"]) == (19, 12)
    assert run(*command, *places, "--data", tmp_path) == ""  # nothing is measured twice
    assert json.loads(file.read_text()) == figures

    monkeypatch.setattr(quality, "CALIBRATED", 2)
    kinds = [*QUANTIZATIONS, "blocks, 8-bit caches"]
    lines = run("int8", *places, "--data", tmp_path, "--family", "par", "--threads", 1).splitlines()
    assert [json.loads(line)["quantization"] for line in lines] == kinds
    run("time", *places)
    page = tmp_path / "quality.md"
    page.write_text((FASHION.parent.parent / "docs/quality.md").read_text())
    run("render", "--json", file)
    text = page.read_text()
    assert re.search(rf"\| par \| `par:4` \| {row['guidance']:g} \| 19 \| [\d.]+ \| {row[DISTANCE]:.2f} \|", text)
    for kind in kinds:
        assert re.search(
            rf"\| par \| `par:4` \| {kind} \| [\d.]+ \| [+-][\d.]+ % \| [\d.]+ % \| [+-][\d.]+ points", text
        )
    assert "`zipar:4`" not in text[text.index("<!-- schedules -->") : text.index("<!-- end of schedules -->")]
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.format == "PNG"
