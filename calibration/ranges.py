"""How far an activation's int8 range reaches: three rules on the histogram of its absolute values.

- max: the largest value seen. Nothing is clipped (Krishnamoorthi, arXiv 1806.08342, section 3.1).
- percentile: the smallest bin edge that has this share of the values below it (McKinstry et al., arXiv 1809.04191).
- entropy: the limit whose clipped and quantised distribution is nearest to the seen one in Kullback-Leibler
  divergence (Migacz, "8-bit inference with TensorRT", GTC 2017, S7310).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arforge.calibration.taps import Arrays
from arforge.runner.errors import CalibrationError

METHODS = ("max", "percentile", "entropy")
BINS = 2048
LEVELS = 128  # of the absolute value in int8, as S7310 counts them


@dataclass(frozen=True)
class Rule:
    """How a range is chosen. Raises CalibrationError for a method or percentile that there is not."""

    method: str
    percentile: float

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CalibrationError(f"unknown method {self.method!r}: use {', '.join(METHODS)}")
        if not 50 <= self.percentile <= 100:
            raise CalibrationError(f"percentile {self.percentile} is out of range: use 50 to 100, such as 99.99")

    def limit(self, counts: NDArray[np.int64], largest: float) -> float:
        """The limit of int64 [bins] `counts` over [0, largest]."""
        if self.method == "percentile":
            return percentile_limit(counts, largest, self.percentile)
        return entropy_limit(counts, largest) if self.method == "entropy" else largest


class ChannelMaxima:
    """The largest absolute value of each channel, over all that is observed."""

    def __init__(self) -> None:
        self.maxima: dict[str, NDArray[np.float32]] = {}

    def __call__(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            seen = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
            if not np.isfinite(seen).all():
                raise CalibrationError(
                    f"tensor {name} holds non-finite values: check the weights with `arforge verify`"
                )
            self.maxima[name] = np.maximum(self.maxima[name], seen) if name in self.maxima else seen


class Histograms:
    """Counts of absolute values in equal bins from 0 to each tensor's largest, which must be known.

    `divisors`: what each channel is divided by first (see `smooth.py`).
    """

    def __init__(self, largest: Mapping[str, float], divisors: Mapping[str, NDArray[np.float32]]) -> None:
        self.largest, self.divisors = largest, divisors
        self.counts = {name: np.zeros(BINS, dtype=np.int64) for name in largest}

    def __call__(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            values = np.abs(array / self.divisors[name] if name in self.divisors else array).ravel()
            scaled = values * (BINS / self.largest[name]) if self.largest[name] else values
            self.counts[name] += np.bincount(np.minimum(scaled, BINS - 1).astype(np.int64), minlength=BINS)


def percentile_limit(counts: NDArray[np.int64], largest: float, percentile: float) -> float:
    below = np.cumsum(counts)
    wanted = below[-1] * (percentile / 100)
    return largest * float(1 + np.searchsorted(below, wanted)) / len(counts) if percentile < 100 else largest


def entropy_limit(counts: NDArray[np.int64], largest: float) -> float:
    """The limit, of the upper edges of bins from `LEVELS` on, that loses the least information."""
    counts = counts.copy()
    counts[0] = counts[1]  # exact zeros, of which a gate gives many, cost nothing at any scale
    candidates = range(LEVELS, len(counts) + 1)
    best = min(candidates, key=lambda kept: divergence(counts, kept))
    return largest * best / len(counts)


def divergence(counts: NDArray[np.int64], kept: int) -> float:
    """KL divergence, in nats, of the distribution clipped to `kept` bins from the same quantised to `LEVELS`."""
    inside = counts[:kept].astype(np.float64)
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    starts = np.arange(LEVELS) * kept // LEVELS
    filled = np.add.reduceat(inside > 0, starts, dtype=np.float64)
    level = np.add.reduceat(inside, starts) / np.maximum(filled, 1)
    quantised = np.where(inside > 0, np.repeat(level, np.diff(starts, append=kept)), 0)
    seen = clipped > 0
    if not seen.any() or (quantised[seen] == 0).any():
        return np.inf
    p, q = clipped[seen] / clipped.sum(), quantised[seen] / quantised.sum()
    return float((p * np.log(p / q)).sum())
