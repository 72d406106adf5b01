"""SmoothQuant: moves the spread of an activation's channels into the weights, where int8 bears it better.

Each channel j of an activation is divided by `max|X_j|^alpha / max|W_j|^(1 - alpha)` and the rows of the weights that
read it are multiplied by the same (Xiao et al., arXiv 2211.10438). The division costs nothing at run time: it goes
into the RMSNorm before the activation, or, for the product of a gate, into the columns of the layer that feeds it.
Activations of attention come from neither and stay as they are. In float32 the graph's function does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from arforge.calibration.layers import Layer
from arforge.export.stored_tensors import values_of
from arforge.runner.errors import CalibrationError

Scales = Mapping[str, NDArray[np.float32]]
"""By activation: what each of its channels is divided by."""


@dataclass(frozen=True)
class Fold:
    """Where the division of one activation goes: a vector, or the columns of a matrix."""

    activation: str
    into: str  # an RMSNorm's scale [channels], or a weight [inputs, channels]
    readers: tuple[str, ...]  # weights [channels, outputs]


def find_folds(graph: onnx.GraphProto, layers: Sequence[Layer]) -> list[Fold]:
    """The activations that can be smoothed: read by layers alone, and made by something that takes a scale."""
    producers = {name: node for node in graph.node for name in node.output}
    uses = [name for node in graph.node for name in node.input] + [value.name for value in graph.output]
    by_output = {output_of(graph, layer): layer for layer in layers}
    readers: dict[str, list[str]] = {}
    for layer in layers:
        readers.setdefault(layer.activation, []).append(layer.weight)
    folds = []
    for activation, weights in readers.items():
        producer = producers.get(activation)
        if producer is None or uses.count(activation) != len(weights):
            continue
        if producer.op_type == "RMSNormalization":
            scaled = [producer.input[1]]
        elif producer.op_type == "Mul":
            scaled = [by_output[name].weight for name in producer.input if name in by_output and uses.count(name) == 1]
        else:
            continue
        if scaled and uses.count(scaled[0]) == 1:
            folds.append(Fold(activation, scaled[0], tuple(weights)))
    return folds


def output_of(graph: onnx.GraphProto, layer: Layer) -> str:
    return str(next(node.output[0] for node in graph.node if node.name == layer.node))


def smoothing(graph: onnx.GraphProto, folder: Path, folds: Sequence[Fold], maxima: Scales, alpha: float) -> Scales:
    """The scales of every fold; weights are read from `folder` one at a time.

    Channels that are always zero, or that no weight reads, stay. Raises CalibrationError unless 0 < `alpha` < 1.
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"smoothing {alpha} is out of range: use a number between 0 and 1, such as 0.5")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    columns: dict[str, NDArray[np.float32]] = {}
    scales = {}
    for fold in reversed(folds):  # a gate's fold changes the columns of a layer that an earlier fold reads
        rows = np.zeros_like(maxima[fold.activation])
        for name in fold.readers:
            weight = np.abs(values_of(stored[name], folder))
            rows = np.maximum(rows, (weight / columns.get(name, np.float32(1))).max(axis=1))
        seen = maxima[fold.activation]
        usable = (seen > 0) & (rows > 0)
        scale = np.where(usable, seen, 1) ** alpha / np.where(usable, rows, 1) ** (1 - alpha)
        scales[fold.activation] = columns[fold.into] = scale.astype(np.float32)
    return scales


def smooth(model: onnx.ModelProto, folds: Sequence[Fold], scales: Scales) -> None:
    """Fold the scales into the weights of `model`, which are in memory."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def replace(name: str, factor: NDArray[np.float32]) -> None:
        values = numpy_helper.to_array(stored[name]) * factor
        stored[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    for fold in folds:
        scale = scales[fold.activation]
        replace(fold.into, np.reciprocal(scale))
        for name in fold.readers:
            replace(name, scale[:, None])
