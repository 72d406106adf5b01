"""The rules of the ranges, on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from arforge.calibration.ranges import BINS, LEVELS, ChannelMaxima, Histograms, Rule, divergence
from arforge.runner.errors import CalibrationError


def histogram(values: NDArray[np.float32], parts: int = 1) -> tuple[NDArray[np.int64], float]:
    """Counts of `values`, observed in several steps of [rows, inputs, channels]."""
    maxima = ChannelMaxima()
    steps = [part.reshape(2, -1, 4) for part in np.split(values, parts)]
    for step in steps:
        maxima({"x": step})
    largest = float(maxima.maxima["x"].max())
    histograms = Histograms({"x": largest}, {})
    for step in steps:
        histograms({"x": step})
    return histograms.counts["x"], largest


@pytest.fixture(scope="module")
def normal() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(200_000).astype(np.float32)


def test_channel_maxima_are_those_of_everything_seen() -> None:
    maxima = ChannelMaxima()
    maxima({"x": np.array([[[1, -5, 0], [2, 3, 0]]], np.float32)})
    maxima({"x": np.array([[[-4, 1, 0]]], np.float32)})
    assert maxima.maxima["x"].tolist() == [4, 5, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(CalibrationError, match="tensor x holds non-finite values"):
        ChannelMaxima()({"x": np.array([[[1, bad]]], np.float32)})


def test_histograms_count_every_value_in_its_bin(normal: NDArray[np.float32]) -> None:
    counts, largest = histogram(normal, parts=5)
    expected, _ = np.histogram(np.abs(normal), BINS, (0, largest))
    assert counts.sum() == normal.size
    assert np.abs(np.cumsum(counts - expected)).max() <= 5  # values on an edge, in float32


def test_histograms_count_the_divided_values() -> None:
    histograms = Histograms({"x": 2.0}, {"x": np.array([1, 4], np.float32)})
    histograms({"x": np.array([[[2, 4], [-0.5, 8]]], np.float32)})
    assert np.flatnonzero(histograms.counts["x"]).tolist() == [BINS // 4, BINS // 2, BINS - 1]
    assert histograms.counts["x"][-1] == 2


def test_max_clips_nothing(normal: NDArray[np.float32]) -> None:
    assert Rule("max", 99.0).limit(*histogram(normal)) == np.abs(normal).max()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_of_uniform_values(percentile: float) -> None:
    counts, largest = histogram(np.linspace(-3, 3, 80_000, dtype=np.float32))
    assert Rule("percentile", percentile).limit(counts, largest) == pytest.approx(0.03 * percentile, abs=2 * 3 / BINS)


def test_percentile_100_is_max(normal: NDArray[np.float32]) -> None:
    assert Rule("percentile", 100).limit(*histogram(normal)) == np.abs(normal).max()


def test_entropy_keeps_uniform_values_and_clips_an_outlier(normal: NDArray[np.float32]) -> None:
    rule = Rule("entropy", 99.0)
    flat, largest = histogram(np.linspace(-3, 3, 80_000, dtype=np.float32))
    assert rule.limit(flat, largest) > 2.9
    outlier = normal.copy()
    outlier[7] = 40
    limit = rule.limit(*histogram(outlier))
    assert 2.5 < limit < 8
    assert noise(outlier[outlier < 40], limit) < noise(outlier[outlier < 40], 40) / 10


def noise(values: NDArray[np.float32], limit: float) -> float:
    """Mean squared error of int8 values of that range."""
    step = limit / 127
    return float(np.square(np.clip(np.rint(values / step), -127, 127) * step - values).mean())


@pytest.mark.parametrize("kept", [LEVELS, LEVELS + 1, 200, 511, 512])
def test_divergence_is_that_of_its_definition(kept: int) -> None:
    random = np.random.default_rng(kept)
    counts = random.poisson(50 * np.exp(-np.arange(512) / 90)).astype(np.int64)
    counts[kept - 1] += 1
    p = [float(count) for count in counts[:kept]]
    p[-1] += float(counts[kept:].sum())
    q = [0.0] * kept
    for level in range(LEVELS):
        inside = range(level * kept // LEVELS, (level + 1) * kept // LEVELS)
        filled = [index for index in inside if counts[index]]
        for index in filled:
            q[index] = sum(int(counts[i]) for i in inside) / len(filled)
    expected = sum(a / sum(p) * np.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a)
    assert divergence(counts, kept) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["max", "percentile", "entropy"])
def test_a_tensor_that_is_always_zero_has_a_range_of_zero(method: str) -> None:
    assert Rule(method, 99.9).limit(*histogram(np.zeros(80, np.float32))) == 0


@pytest.mark.parametrize(
    ("method", "percentile", "message"),
    [
        ("minmax", 99.9, "unknown method 'minmax': use max, percentile, entropy"),
        ("percentile", 0.999, "percentile 0.999 is out of range: use 50 to 100"),
        ("percentile", float("nan"), "percentile nan is out of range"),
        ("percentile", 100.1, "percentile 100.1 is out of range"),
    ],
)
def test_rules_that_there_are_not(method: str, percentile: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Rule(method, percentile)
