"""How good the images of a schedule are: distance of their features to real images, class accuracy, and time.

The distance is of EfficientNet-Lite0's features (features.py): it orders schedules of one model, and is not
comparable with published FIDs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arforge.calibration.quality.classifier import Classifier
from arforge.calibration.quality.features import DIMENSIONS, FeatureExtractor
from arforge.calibration.quality.frechet import MINIMUM, Gaussian, Moments, frechet_distance
from arforge.calibration.quality.image_set import ImageSet
from arforge.runner.bundle import Bundle
from arforge.runner.device import device_name
from arforge.runner.errors import EvaluationError
from arforge.runner.output import write_whole
from arforge.runner.request import MAX_SEED, Progress, Sampling, Subjects, whole
from arforge.runner.runner import Runner
from arforge.version import VERSION

DISTANCE = "frechet_distance_efficientnet_lite0"  # the name in every file that holds one
MEASURE = (
    "Fréchet distance of EfficientNet-Lite0 features: not Inception's, not comparable with published FIDs; compare "
    "equal numbers of samples and one input side only"
)


@dataclass(frozen=True)
class Samples:
    """The images that a schedule is judged by: `count`, going round the subjects, their seeds counting up."""

    count: int
    subjects: Subjects
    sampling: Sampling
    first_seed: int = 0
    batch: int = 32

    def check(self) -> None:
        """Raise RequestError for seeds out of range, before any work is done."""
        whole("seed", self.first_seed + self.count - 1, 0, MAX_SEED)

    def parts(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """What a batch at a time is asked for by, and its seeds, so that no more images are in memory."""
        for first in range(0, self.count, self.batch):
            indices = range(first, min(self.count, first + self.batch))
            yield self.subjects.take(indices), [self.first_seed + i for i in indices]

    def to_json(self) -> dict[str, Any]:
        """Of prompts that are arrays only their number, and by what they are given."""
        seeds, subjects = [self.first_seed, self.first_seed + self.count - 1], self.subjects
        arrays = subjects.by in ("features", "ids")
        return {
            "samples": self.count,
            "batch": self.batch,
            "seeds": seeds,
            **({"prompts": len(subjects.values), "prompts_by": subjects.by} if arrays else subjects.to_json()),
            **{name: value for name, value in subjects.settings.items() if value},
            **asdict(self.sampling),
        }


@dataclass(frozen=True)
class Quality:
    """One schedule's row."""

    schedule: str
    steps: float  # engine calls until an image was done, the mean of all
    token_ms: float  # prompts and decoding of tokens, wall clock, an image
    decoder_ms: float  # tokens to pixels, wall clock, an image
    distance: float
    accuracy: float | None  # share of images; None without a classifier

    @property
    def milliseconds(self) -> float:
        return self.token_ms + self.decoder_ms

    def to_json(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule,
            "steps": self.steps,
            "ms_per_image": self.milliseconds,
            "ms_per_image_tokens": self.token_ms,
            "ms_per_image_decoder": self.decoder_ms,
            DISTANCE: self.distance,
            "class_accuracy": self.accuracy,
        }


def evaluate_schedule(
    runner: Runner,
    schedule: str,
    samples: Samples,
    reference: Gaussian,
    extractor: FeatureExtractor,
    classifier: Classifier | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Generate the samples and judge them. A batch before them, which is not counted, warms up.

    Raises EvaluationError for a bundle that gives tokens only.
    """
    image_size(runner.bundle)
    moments, hits, token_seconds, decoder_seconds, calls = Moments(), 0, 0.0, 0.0, 0
    done = 0
    for index, (asked, seeds) in enumerate(samples.parts()):
        request: dict[str, Any] = {"schedule": schedule, "batch": samples.batch, **asdict(samples.sampling)}
        if index == 0:
            runner.generate(**asked, seeds=seeds, **request)
        result = runner.generate(**asked, seeds=seeds, **request)
        assert result.images is not None
        moments.add(extractor(result.images))
        if classifier is not None:
            hits += classifier.hits(result.images, asked["classes"])
        calls += int(result.passes.sum())
        token_seconds += result.condition_seconds + result.seconds
        decoder_seconds += result.image_seconds
        done += len(seeds)
        if progress is not None:
            progress(done, samples.count)
    return Quality(
        schedule=schedule,
        steps=calls / samples.count,
        token_ms=1000 * token_seconds / samples.count,
        decoder_ms=1000 * decoder_seconds / samples.count,
        distance=frechet_distance(moments.gaussian(), reference),
        accuracy=None if classifier is None else hits / samples.count,
    )


def gaussian_of(
    images: ImageSet, extractor: FeatureExtractor, batch: int = 100, progress: Progress | None = None
) -> Gaussian:
    """The Gaussian of the features of images on disk."""
    moments, done = Moments(), 0
    for part in images.batches(batch):
        moments.add(extractor(part))
        done += len(part)
        if progress is not None:
            progress(done, images.count)
    return moments.gaussian()


def image_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the images of a bundle. Raises EvaluationError if it gives none."""
    if bundle.image_tokenizer is None:
        raise EvaluationError(f"{bundle.root} has no image tokenizer and gives tokens only: export with --tokenizer")
    return bundle.image_tokenizer.image_size


def check_images(images: ImageSet, size: tuple[int, int], bundle: Path) -> None:
    """Raise EvaluationError unless the images have the size of the bundle's, and are enough for a covariance."""
    if images.size != size:
        raise EvaluationError(
            f"images of {images.path} are {images.size[0]}x{images.size[1]} (height x width), those of {bundle} "
            f"{size[0]}x{size[1]}: bring the real ones to that size"
        )
    if images.count < MINIMUM:
        raise EvaluationError(f"{images.path} holds {images.count} image: a covariance takes at least {MINIMUM}")


def notes(counts: dict[str, int]) -> list[str]:
    """Warnings of sets that are too small for a covariance of full rank; `counts` by what the set is."""
    return [
        f"{count} {what} are fewer than the {DIMENSIONS + 1} that a covariance of full rank takes: distances are "
        "biased upwards, so compare equal numbers only"
        for what, count in counts.items()
        if count <= DIMENSIONS
    ]


def save_json(path: Path, figures: dict[str, Any]) -> None:
    """Write figures whole or not at all. Raises RequestError if they cannot be written."""
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def environment() -> dict[str, Any]:
    """Device and versions, as they belong to every figure."""
    return {
        "device": device_name(),
        "versions": {
            "arforge": VERSION,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "onnxruntime")},
        },
    }
