"""What int8 does to each layer by itself: its output from float32 inputs, quantised and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from arforge.calibration.layers import Layer
from arforge.calibration.quantize import LARGEST
from arforge.calibration.smooth import Scales
from arforge.calibration.taps import Arrays
from arforge.export.stored_tensors import values_of
from arforge.export.wide_weights import load_wide

ROWS = 256  # of each activation


@dataclass(frozen=True)
class LayerError:
    layer: str
    inputs: int
    outputs: int
    limit: float  # of the activation's int8 range
    clipped: float  # share of the activation's values beyond it
    error: float  # |int8 output - float32 output| / |float32 output|, Euclidean norms over the sampled rows

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise, in dB."""
        return -20 * float(np.log10(max(self.error, 1e-10)))


class RowSample:
    """At most `ROWS` rows of each tensor, every row seen with the same chance."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.rows: dict[str, NDArray[np.float32]] = {}
        self._keys: dict[str, NDArray[np.float64]] = {}

    def __call__(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            rows = array.reshape(-1, array.shape[-1])
            keys = self._random.random(len(rows))  # the rows of the smallest keys stay
            if name in self.rows:
                rows, keys = np.concatenate([self.rows[name], rows]), np.concatenate([self._keys[name], keys])
            kept = np.argsort(keys)[:ROWS]
            self.rows[name], self._keys[name] = rows[kept], keys[kept]


def layer_errors(
    layers: Sequence[Layer],
    rows: Arrays,
    limits: Mapping[str, float],
    scales: Scales,
    columns: Scales,
    float32: Path,
    int8: Path,
) -> list[LayerError]:
    """The error of each of `layers` on `rows` of their activations, before any smoothing; one weight at a time.

    `scales`, `columns`: by activation and by weight, what smoothing divides the channels of inputs and outputs by.
    `float32`, `int8`: the graphs that hold the weights.
    """
    plain, quantized = stored(float32), stored(int8)
    errors = []
    for layer in layers:
        sample, limit = rows[layer.activation], limits[layer.activation]
        expected = sample @ values_of(plain[layer.weight], float32.parent)
        smoothed = sample / scales.get(layer.activation, np.float32(1))
        step = np.float32(limit / LARGEST) if limit else np.float32(1)
        given = np.clip(np.rint(smoothed / step), -LARGEST - 1, LARGEST) * step
        weight = values_of(quantized[f"{layer.weight}_quantized"], int8.parent).astype(np.float32)
        found = given @ weight * values_of(quantized[f"{layer.weight}_scale"], int8.parent)
        found *= columns.get(layer.weight, np.float32(1))
        size = float(np.linalg.norm(expected))
        errors.append(
            LayerError(
                layer.name,
                layer.inputs,
                layer.outputs,
                limit,
                clipped=float((np.abs(smoothed) > limit).mean()),
                error=float(np.linalg.norm(found - expected)) / size if size else 0.0,
            )
        )
    return errors


def stored(graph: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in load_wide(graph).graph.initializer}
