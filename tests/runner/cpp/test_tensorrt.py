"""TensorRT's engines in C++, on a library and a GPU that are not there: the tokens are Python's, and the CPU engine's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from fake_gpu import RTX, FakeGpu, fake_library
from made_once import made_once
from stand_in_bundle import stand_in_bundle
from tiny_ids import prompt_of

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.image_codec import OnnxRuntimeCodec
from arforge.runner.backends.tensorrt_codec import TensorRTCodec
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.conditioner import Conditioner
from arforge.runner.conditions import sample_features

SEEDS = [9, 2**64 - 1, 6, 5, 0]
CLASSES = [3, 1, 4, 1, 5]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classes": ("bundle", {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "filters": True}),
    "jacobi": ("bundle", {"schedules": ["ntp", "jacobi:6"], "images": [1, 3], "filters": True}),
    "features": ("text_bundle", {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "prefill_widths": [4, 16]}),
    "ids": ("ids_bundle", {"schedules": ["ntp", "zipar:2"], "images": [2], "filters": True}),
    "par": ("par_bundle", {"schedules": ["par:4"], "images": [1, 2]}),
    "arpg": ("arpg_bundle", {"schedules": ["arpg:3"], "images": [2]}),
}
SCHEDULES = [
    ("classes", "ntp"),
    ("classes", "zipar:2"),
    ("classes", "jacobi:6"),
    ("jacobi", "ntp"),
    ("jacobi", "jacobi:6"),
    ("features", "ntp"),
    ("features", "zipar:2"),
    ("ids", "ntp"),
    ("ids", "zipar:2"),
    ("par", "par:4"),
    ("arpg", "arpg:3"),
]


@pytest.fixture(scope="session")
def stand_ins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Bundles of a kind with an engine of a precision that the stand-in runs. Tests must leave them as they are."""
    made: dict[tuple[str, str], Path] = {}

    def stand_in(kind: str, precision: str = "fp32") -> Path:
        if (kind, precision) not in made:
            source, wishes = KINDS[kind]

            def make(path: Path) -> None:
                built = Path(shutil.copytree(request.getfixturevalue(source), path.with_name("built.bundle")))
                tensorrt.build(BuildJob(built, RTX, precision, **wishes))
                stand_in_bundle(built, path)

            made[kind, precision] = made_once(tmp_path_factory, f"cpp-{kind}-{precision}.bundle", make)
        return made[kind, precision]

    return stand_in
