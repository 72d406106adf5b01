from __future__ import annotations

from pathlib import Path

import pytest

from arforge.runner import open_bundle
from arforge.runner.bundle.names import foreign, is_added, is_folder


@pytest.mark.parametrize("name", ["bundle", "arpg_bundle", "par_bundle"])
def test_arforge_knows_all_names_that_it_writes(name: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    assert list(foreign(root, listed=())) == []
    engines = [path for path in open_bundle(root).files if path.startswith("engines/")]
    assert engines
    assert all(is_added(path) for path in engines)
    assert not any(is_added(path) for path in open_bundle(root).files if path.startswith("schedules/"))


@pytest.mark.parametrize(
    "path",
    [
        "graphs/fp16/step.onnx",
        "graphs/bf16/weights/model.weights",
        "graphs/fp32/step-tensorrt-0123456789ab.onnx",
        "graphs/fp16/weights/step-tensorrt-0123456789ab.weights",
        "engines/tensorrt-rtx-fp16-sm86+sm89/step-0123456789ab.engine",
        "engines/tensorrt-int8-sm89/timing-0123456789ab.cache",
        "engines/onnxruntime-int8-cpu/weights/step-0123456789ab.weights",
        ".arforge-0123456789abcdef.partial",
        "engines/onnxruntime-fp32-cpu/.arforge-0123456789abcdef.partial",
        "graphs/fp16/weights/..arforge-0123456789abcdef.partial.ki7z22k7/.arforge-0123456789abcdef.partial",
    ],
)
def test_names_of_builds(path: str) -> None:
    assert is_added(path)


@pytest.mark.parametrize(
    "path",
    [
        "graphs/fp32/step.onnx",  # of the exporter, which is never cut off in a bundle
        "graphs/fp32/decoder.quantized.onnx",
        "graphs/fp32/step-tensorrt-0123456789AB.onnx",
        "engines/mine/model.plan",
        "engines/tensorrt-fp16-sm89/model.plan",
        "engines/tensorrt-fp16-sm89/notes/step-0123456789ab.engine",
        "elsewhere/graphs/fp16/step.onnx",
        "notes.partial",
    ],
)
def test_other_names_are_other_peoples(path: str) -> None:
    assert not is_added(path)


def test_folders_of_other_people_are_theirs(bundle_copy: Path) -> None:
    assert is_folder("engines/onnxruntime-int8-cpu/weights")
    assert not is_folder("engines/mine")
    (bundle_copy / "engines/mine").mkdir()
    (bundle_copy / "engines/mine/model.plan").touch()
    (bundle_copy / "linked").symlink_to("engines", target_is_directory=True)
    assert list(foreign(bundle_copy, open_bundle(bundle_copy).files)) == ["linked", "engines/mine/model.plan"]
