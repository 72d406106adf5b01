"""The Fréchet distance against closed forms, and its behaviour where a covariance has no full rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arforge.calibration.quality.frechet import Gaussian, Moments, frechet_distance
from arforge.runner.errors import EvaluationError

RANDOM = np.random.default_rng(0)


def moments_of(features: NDArray[np.float64], batch: int = 10_000) -> Gaussian:
    moments = Moments()
    for first in range(0, len(features), batch):
        moments.add(features[first : first + batch])
    return moments.gaussian()


def random_gaussian(dimensions: int, seed: int) -> Gaussian:
    random = np.random.default_rng(seed)
    factor = random.normal(size=(dimensions, dimensions + 3))
    return Gaussian(100, random.normal(size=dimensions), factor @ factor.T)


def matrix_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a symmetric matrix, the textbook way."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


@pytest.mark.parametrize("dimensions", [1, 2, 40])
def test_is_the_textbook_formula(dimensions: int) -> None:
    a, b = random_gaussian(dimensions, 1), random_gaussian(dimensions, 2)
    root = matrix_root(a.covariance)
    cross = matrix_root(root @ b.covariance @ root)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * cross)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_diagonal_covariances_have_a_closed_form() -> None:
    a = Gaussian(9, np.array([1.0, 2.0, 3.0]), np.diag([4.0, 9.0, 0.0]))
    b = Gaussian(9, np.array([1.0, 0.0, 3.0]), np.diag([1.0, 16.0, 25.0]))
    # 2² of the means, then (2 - 1)² + (3 - 4)² + (0 - 5)² of the deviations
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 1 + 25, rel=1e-12)


@given(st.integers(1, 30), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_is_symmetric_and_scales_with_the_square(dimensions: int, seed: int, scale: float) -> None:
    a, b = random_gaussian(dimensions, seed), random_gaussian(dimensions, seed + 1)
    distance = frechet_distance(a, b)
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9)
    larger = [Gaussian(g.count, g.mean * scale, g.covariance * scale**2) for g in (a, b)]
    assert frechet_distance(*larger) == pytest.approx(distance * scale**2, rel=1e-6)


def test_is_zero_for_itself_and_positive_otherwise() -> None:
    for dimensions in (1, 5, 60):
        a = random_gaussian(dimensions, dimensions)
        assert frechet_distance(a, a) <= 1e-9 * np.trace(a.covariance)
        assert frechet_distance(a, Gaussian(9, a.mean + 0.1, a.covariance)) == pytest.approx(0.01 * dimensions)


def test_covariance_without_full_rank_is_zero_for_itself_too() -> None:
    features = RANDOM.normal(size=(20, 100))  # rank 19
    a, b = moments_of(features), moments_of(RANDOM.normal(size=(20, 100)))
    assert a.root.shape == (19, 100)
    np.testing.assert_allclose(a.root.T @ a.root, a.covariance, atol=1e-12)
    assert frechet_distance(a, a) <= 1e-10 * np.trace(a.covariance)
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) > 30


def test_constant_features_have_the_distance_of_their_means() -> None:
    a, b = (moments_of(np.full((5, 4), value)) for value in (1.0, 3.0))
    assert frechet_distance(a, b) == pytest.approx(16)
    assert frechet_distance(a, a) == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 100))
def test_batches_give_what_all_at_once_gives(batches: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    # far from zero: a sum of squares would lose these digits
    features = 1e6 + random.normal(size=(sum(batches) + 1, 5))
    moments, first = Moments(), 0
    for batch in (*batches, 1):
        moments.add(features[first : first + batch])
        first += batch
    found = moments.gaussian()
    assert found.count == len(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), atol=1e-8)


def test_small_floats_are_summed_in_double_precision() -> None:
    features = RANDOM.normal(size=(5000, 3)).astype(np.float32) + np.float32(1000)
    found = moments_of(features, batch=7)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_too_few_and_damaged_features_are_refused() -> None:
    moments = Moments()
    moments.add(np.zeros((0, 4)))
    with pytest.raises(EvaluationError, match="0 images have no covariance"):
        moments.gaussian()
    moments.add(np.ones((1, 4)))
    with pytest.raises(EvaluationError, match="1 images have no covariance"):
        moments.gaussian()
    with pytest.raises(EvaluationError, match="non-finite"):
        moments.add(np.array([[0.0, np.nan, 0.0, 0.0]]))
