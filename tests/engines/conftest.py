"""Bundles with TensorRT-RTX engines, built once a session without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob

RTX = "tensorrt-rtx"


@pytest.fixture(scope="session")
def rtx_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LlamaGen's, at three widths, in fp16 and int8. Tests must leave it as it is."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("rtx") / "tiny.bundle"))
    tensorrt.build(BuildJob(path, RTX, "fp16", ["8.6", "12.0"], ["zipar:4"], [1, 2, 4]))
    calibrate(CalibrationJob(path, Rule("max", 100.0), ["ntp"], samples=2, check=0))
    tensorrt.build(BuildJob(path, RTX, "int8", schedules=["zipar:4"], widths=[1, 4]))
    return path


@pytest.fixture(scope="session")
def rtx_arpg_bundle(arpg_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARPG's in fp16: layers that share a cache, and profiles of a width and a number of queries."""
    path = Path(shutil.copytree(arpg_bundle, tmp_path_factory.mktemp("rtx") / "arpg.bundle"))
    tensorrt.build(BuildJob(path, RTX, "fp16", schedules=["arpg:3"]))
    return path


@pytest.fixture
def rtx_copy(rtx_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rtx_bundle, tmp_path / "copy.bundle"))
