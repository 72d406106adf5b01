"""The demo: its training script from end to end on made-up data, and the weights that ship."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from arforge.engines import onnxruntime
from arforge.export.config import read_config
from arforge.export.exporter import Job, export_bundle
from arforge.export.llamagen import FAMILY
from arforge.runner import Runner

FASHION = Path(__file__).parent.parent.parent / "examples/fashion"
CHECKPOINTS = FASHION / "checkpoints"
NAMES = ("tokenizer.safetensors", "llamagen.safetensors", "classifier.safetensors")
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
    job = Job(
        family=FAMILY,
        config=read_config(made / "llamagen.json", FAMILY),
        checkpoint=made / "llamagen.safetensors",
        tokenizer=made / "tokenizer.safetensors",
        output=tmp_path / "made.bundle",
        schedules=["zipar:2"],
    )
    export_bundle(job)
    onnxruntime.build(job.output)
    with Runner.open(job.output) as runner:
        images = runner.generate([0, 9], schedule="zipar:2").images
    assert images is not None
    assert images.shape == (2, 32, 32, 3)


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
    assert sum((CHECKPOINTS / name).stat().st_size for name in NAMES) < 15e6
    for name in NAMES:
        with safe_open(CHECKPOINTS / name, framework="pt") as file:
            assert all(torch.isfinite(file.get_tensor(key).float()).all() for key in file.keys())  # noqa: SIM118


def test_kept_figures_hold_the_bar() -> None:
    facts = json.loads((CHECKPOINTS / "figures.json").read_text())
    assert facts["samples"] == 1000
    best = facts["figures"][f"ntp, guidance {facts['best guidance']:g}"]
    assert best >= 0.85
    assert best == max(share for name, share in facts["figures"].items() if name.startswith("ntp"))


@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_shipped_model_still_makes_its_classes(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    monkeypatch.syspath_prepend(str(FASHION))
    import evaluate

    facts = json.loads((CHECKPOINTS / "figures.json").read_text())
    guidance = facts["best guidance"]
    with Runner.open(demo_bundle) as runner:
        share = evaluate.class_accuracy(runner, evaluate.load_classifier(), SAMPLES, schedule, guidance)
    kept = facts["figures"][f"{schedule}, guidance {guidance:g}"]
    # the kept figure is of 1,000 samples: three standard errors of this smaller sample apart at most
    assert abs(share - kept) < 3 * (kept * (1 - kept) / SAMPLES) ** 0.5 + 1e-9


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "fashion.bundle"
    config = read_config(CHECKPOINTS / "llamagen.json", FAMILY)
    weights = CHECKPOINTS / "llamagen.safetensors"
    export_bundle(Job(FAMILY, config, weights, CHECKPOINTS / "tokenizer.safetensors", output, ["ntp"]))
    onnxruntime.build(output)
    return output
