"""A classifier as the judge of class accuracy: an ONNX file, run with ONNX Runtime.

Its contract: one input, uint8 [images, height, width, 3]; one output, float [images, classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.errors import EngineError, EvaluationError

CONTRACT = "expected one input uint8 [images, height, width, 3] and one output float [images, classes]"
BATCH = 500
RGB = 3


class Classifier:
    """Names the class of images. Raises EvaluationError unless the file keeps the contract and fits the images."""

    def __init__(self, path: Path, size: tuple[int, int], classes: int, threads: int | None = None) -> None:
        """`size`: height and width of the images; `classes`: the classes that they are of; `threads`: None for all."""
        if not path.is_file():
            raise EvaluationError(f"no classifier at {path}: name an ONNX file; {CONTRACT}")
        try:
            self._session = open_session(path, threads)
        except EngineError as error:
            raise EvaluationError(f"{path} is no ONNX file that ONNX Runtime loads ({error.__cause__})") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = "; ".join(f"{value.name} {value.type} {value.shape}" for value in (*inputs, *outputs))
        if not (
            len(inputs) == len(outputs) == 1
            and (inputs[0].type, outputs[0].type) == ("tensor(uint8)", "tensor(float)")
            and (len(inputs[0].shape), len(outputs[0].shape)) == (4, 2)
        ):
            raise EvaluationError(f"{path} is no classifier of images: {CONTRACT}, found {found}")
        wanted = (*size, RGB)
        for fixed, present in zip((*inputs[0].shape[1:], outputs[0].shape[1]), (*wanted, classes), strict=True):
            if isinstance(fixed, int) and fixed != present:
                raise EvaluationError(
                    f"{path} does not fit images of {size[0]}x{size[1]} and {classes} classes: it has {found}"
                )
        self._input, self._classes = inputs[0].name, classes

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The most likely class of each image of uint8 [images, height, width, 3]."""
        parts = []
        for first in range(0, len(images), BATCH):
            (scores,) = self._session.run(None, {self._input: images[first : first + BATCH]})
            if scores.shape[1] != self._classes:
                raise EvaluationError(f"the classifier has {scores.shape[1]} classes, the bundle {self._classes}")
            parts.append(scores.argmax(axis=1))
        return np.concatenate(parts).astype(np.int64)

    def hits(self, images: NDArray[np.uint8], classes: Sequence[int] | NDArray[np.int64]) -> int:
        """How many images are taken for their class: over all of them, the class accuracy."""
        return int((self.predict(images) == np.asarray(classes)).sum())
