"""The judge of class accuracy: an ONNX file that keeps its contract, and files that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from arforge.calibration.quality.classifier import Classifier
from arforge.runner.errors import EvaluationError

SIZE, CLASSES = (4, 6), 3


def save_classifier(
    path: Path,
    pixels: int = TensorProto.UINT8,
    shape: tuple[int | str, ...] = ("images", "height", "width", 3),
    outputs: int = 1,
) -> Path:
    """Scores are the mean of each channel: the brightest channel is the class."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["scores"], keepdims=0),
        helper.make_node("Identity", ["scores"], ["again"]),
    ]
    names = ("scores", "again")[:outputs]
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("pixels", pixels, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("images", "classes")) for name in names],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_names_the_likeliest_class(tmp_path: Path) -> None:
    classifier = Classifier(save_classifier(tmp_path / "c.onnx"), SIZE, CLASSES, threads=1)
    images = np.full((1203, *SIZE, 3), 10, dtype=np.uint8)  # more than one call's worth
    classes = np.arange(1203) % 3
    images[np.arange(1203), 0, 0, classes] = 200
    assert (classifier.predict(images) == classes).all()
    assert classifier.hits(images, classes) == 1203
    assert classifier.hits(images, [2] * 1203) == 401


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pixels": TensorProto.FLOAT},
            r"no classifier of images: expected one input uint8 .* found pixels",
        ),
        ({"shape": ("images", "height", "width")}, "no classifier of images"),
        ({"outputs": 2}, "no classifier of images"),
        ({"shape": ("images", 8, 8, 3)}, "does not fit images of 4x6 and 3 classes"),
        ({"shape": ("images", 4, 6, 1)}, "does not fit images of 4x6 and 3 classes"),
    ],
)
def test_other_graphs_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = save_classifier(tmp_path / "c.onnx", **changes)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=message):
        Classifier(path, SIZE, CLASSES, threads=1)


def test_other_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not fit images of 4x6 and 10 classes"):
        Classifier(save_classifier(tmp_path / "c.onnx"), SIZE, 10, threads=1)


def test_open_number_of_classes_is_checked_on_the_scores(tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "c.onnx", shape=("images", "height", "width", "channels"))
    classifier = Classifier(path, SIZE, 10, threads=1)
    with pytest.raises(EvaluationError, match="has 3 classes, the bundle 10"):
        classifier.predict(np.zeros((2, *SIZE, 3), np.uint8))


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no classifier at"):
        Classifier(tmp_path / "none.onnx", SIZE, CLASSES)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(EvaluationError, match=r"bad\.onnx is no ONNX file that ONNX Runtime loads"):
        Classifier(tmp_path / "bad.onnx", SIZE, CLASSES)
