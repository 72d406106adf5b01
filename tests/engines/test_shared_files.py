"""Bundles whose files have other names too: `cp -al`, `rsync --link-dest`, a deduplicated disk; and a linked folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arforge.calibration import int8
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime
from arforge.engines.low_precision import add_graphs
from arforge.engines.verify import verify_bundle
from arforge.export.verify import compare_logits
from arforge.runner import Runner, open_bundle
from arforge.runner.bundle.writer import changing
from arforge.runner.errors import PathError


def calibrate(root: Path) -> None:
    int8.calibrate(int8.CalibrationJob(root, Rule("max", 100.0), ["ntp"], samples=1, check=1, trials=0, threads=1))


def lower(root: Path) -> None:
    with changing(root) as bundle:
        add_graphs(bundle, "fp16")


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def hard_linked(bundle_copy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_copy, tmp_path / "hard.bundle", copy_function=os.link))


@pytest.mark.parametrize(
    "work",
    [
        lambda root: onnxruntime.build(root, widths=[1, 2]),
        lambda root: onnxruntime.build(root, "int8"),
        calibrate,
        lower,
        lambda root: verify_bundle(root, lambda line: None),
        lambda root: compare_logits(open_bundle(root), "ntp", 1),
    ],
    ids=["build", "build int8", "calibrate", "fp16", "verify", "compare"],
)
def test_a_hard_linked_copy_is_used_like_others_and_its_original_stays(
    bundle_copy: Path, hard_linked: Path, work: Callable[[Path], object]
) -> None:
    before = contents(bundle_copy)
    work(hard_linked)
    open_bundle(hard_linked).check_hashes()
    assert contents(bundle_copy) == before


def test_a_bundle_whose_folder_is_a_link_is_built_calibrated_and_run(bundle_copy: Path, tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    latest.symlink_to(bundle_copy, target_is_directory=True)
    (bundle_copy / "notes.txt").write_text("mine")
    calibrate(latest)
    onnxruntime.build(latest, "int8", quantization="static")
    with Runner.open(latest, precision="int8", threads=1) as runner:
        assert runner.generate([1], schedule="zipar:2").tokens.shape == (1, 64)
    assert latest.is_symlink()
    assert (bundle_copy / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.bundle", "latest"]


def test_a_graph_that_reads_outside_of_the_bundle_is_refused_by_builders(bundle_copy: Path, tmp_path: Path) -> None:
    """Weights that somebody moves out, and leaves a link in their place after the bundle was opened."""
    opened = open_bundle(bundle_copy)
    weights = bundle_copy / "graphs/fp32/weights/model.weights"
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "moved")
    with pytest.raises(PathError, match=r"names the file 'weights/model.weights', which lies outside"):
        add_graphs(opened, "fp16")
