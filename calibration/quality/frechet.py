"""The Fréchet distance between two sets of features, each taken as a Gaussian, in float64.

    |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1^½ C2 C1^½)^½)

(Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, for image features). The last trace is the sum of the
singular values of C1^½ C2^½: those are the roots of the eigenvalues of C1^½ C2 C1^½, and finding them without squaring
keeps half of the digits that a matrix square root of the product C1 C2 loses where a covariance has no full rank. No
regulariser is added, and no imaginary part has to be thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import EvaluationError

MINIMUM = 2  # samples that a covariance takes


@dataclass(frozen=True)
class Gaussian:
    """What is kept of a set of features."""

    count: int  # samples
    mean: NDArray[np.float64]  # (dimensions)
    covariance: NDArray[np.float64]  # (dimensions, dimensions), divided by count - 1

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """(rank, dimensions): `root.T @ root` is the covariance. Directions without variance are left out."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        root: NDArray[np.float64] = np.sqrt(values[kept])[:, None] * vectors.T[kept]
        return root


class Moments:
    """Mean and covariance of features that come in batches (merging of Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._scatter: NDArray[np.float64] = np.zeros((0, 0))  # sum of outer products about the mean

    def add(self, features: NDArray[np.floating[Any]]) -> None:
        """Take in float [samples, dimensions]. Raises EvaluationError if they are not finite."""
        if not np.isfinite(features).all():
            raise EvaluationError("features are non-finite: the feature network or its input is damaged")
        if len(features) == 0:
            return
        batch = features.astype(np.float64)
        mean = batch.mean(axis=0)
        centred = batch - mean
        if self._count == 0:
            self._mean, self._scatter = np.zeros_like(mean), np.zeros((len(mean), len(mean)))
        total = self._count + len(batch)
        shift = mean - self._mean
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self._count * len(batch) / total)
        self._mean = self._mean + shift * (len(batch) / total)
        self._count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of all so far. Raises EvaluationError for fewer than two samples."""
        if self._count < MINIMUM:
            raise EvaluationError(f"{self._count} images have no covariance: at least {MINIMUM} are needed")
        return Gaussian(self._count, self._mean, self._scatter / (self._count - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The distance, in squared units of the features; never negative, zero for equal Gaussians (to rounding)."""
    overlap = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    shift = first.mean - second.mean
    distance = shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return max(0.0, float(distance))
