"""Bundles with TensorRT-RTX engines, built once a session without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_once import made_once

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.runner import open_bundle
from arforge.runner.conditions import sample_subjects

RTX = "tensorrt-rtx"


@pytest.fixture(scope="session")
def rtx_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LlamaGen's, at three widths, in fp16 and int8. Tests must leave it as it is."""

    def make(path: Path) -> None:
        shutil.copytree(bundle, path)
        tensorrt.build(BuildJob(path, RTX, "fp16", ["8.6", "12.0"], ["zipar:4"], [1, 2, 4]))
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0))
        tensorrt.build(BuildJob(path, RTX, "int8", schedules=["zipar:4"], widths=[1, 4]))

    return made_once(tmp_path_factory, "rtx.bundle", make)


@pytest.fixture(scope="session")
def rtx_arpg_bundle(arpg_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARPG's in fp16: layers that share a cache, and profiles of a width and a number of queries."""

    def make(path: Path) -> None:
        shutil.copytree(arpg_bundle, path)
        tensorrt.build(BuildJob(path, RTX, "fp16", schedules=["arpg:3"]))

    return made_once(tmp_path_factory, "rtx-arpg.bundle", make)


@pytest.fixture(scope="session")
def rtx_text_bundle(text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16, bf16 and int8. Tests must leave it as it is."""

    def make(path: Path) -> None:
        shutil.copytree(text_bundle, path)
        tensorrt.build(BuildJob(path, RTX, "fp16", schedules=["zipar:4"], widths=[1, 4], prefill_widths=[8, 32]))
        tensorrt.build(BuildJob(path, RTX, "bf16", schedules=["ntp"], images=[1, 2], filters=False))
        subjects = sample_subjects(open_bundle(path).model, 2)
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0, subjects=subjects))
        tensorrt.build(BuildJob(path, RTX, "int8", schedules=["zipar:4"], widths=[1, 4]))

    return made_once(tmp_path_factory, "rtx-text.bundle", make)


@pytest.fixture(scope="session")
def rtx_view_bundle(grouped_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LlamaGen's with grouped heads, at two widths, in fp16 and int8 by views. Tests must leave it as it is."""

    def make(path: Path) -> None:
        shutil.copytree(grouped_bundle, path)
        tensorrt.build(BuildJob(path, RTX, "fp16", ["8.6"], ["zipar:2"], [1, 3], attention="view"))
        calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0))
        tensorrt.build(BuildJob(path, RTX, "int8", ["8.6"], ["zipar:2"], [1, 3], attention="view"))

    return made_once(tmp_path_factory, "rtx-view.bundle", make)


@pytest.fixture
def rtx_copy(rtx_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rtx_bundle, tmp_path / "copy.bundle"))
