"""The arguments of a generation, checked; and what watches over it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import ImageTokenizerFacts
from arforge.runner.errors import Cancelled, RequestError

MAX_SEED = 2**64 - 1
MAX_SCALE = 1000  # of guidance and temperature
MAX_TOP_K = 2**30
MAX_BATCH = 2**30

Progress = Callable[[int, int], None]
"""Called after every step with the steps done and the steps of the whole request."""


class CancelFlag(Protocol):
    """Anything like threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Request:
    """The sampling side of a generation. Raises RequestError for a value out of range."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance) and 1 <= self.guidance <= MAX_SCALE):
            raise RequestError(f"guidance {self.guidance} is out of range: use 1 (off) to {MAX_SCALE}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_SCALE):
            raise RequestError(f"temperature {self.temperature} is out of range: use 0 (greedy) to {MAX_SCALE}")
        whole("top-k", self.top_k, 0, MAX_TOP_K)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top-p {self.top_p} is out of range: use a number in (0, 1]; 1 is off")


def whole(what: str, value: Any, least: int, most: int) -> int:
    """`value` as an int. Raises RequestError unless it is a whole number in that range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r} is not a whole number: use {least} to {most}") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise RequestError(f"{what} {value} is out of range: use {least} to {most}")
    return number


def check_classes(classes: Sequence[int], count: int) -> NDArray[np.int64]:
    """Class labels below `count`, at least one, int64 [images]. Raises RequestError."""
    if len(classes) == 0:
        raise RequestError("no classes given: name at least one")
    return np.array([whole("class", label, 0, count - 1) for label in classes], dtype=np.int64)


def check_seeds(seeds: Sequence[int] | None, images: int) -> NDArray[np.uint64]:
    """One seed an image, uint64 [images]; None: 0, 1, … Raises RequestError."""
    if seeds is None:
        return np.arange(images, dtype=np.uint64)
    if len(seeds) != images:
        raise RequestError(f"{len(seeds)} seeds for {images} classes: give one seed an image")
    return np.array([whole("seed", seed, 0, MAX_SEED) for seed in seeds], dtype=np.uint64)


def check_images(images: NDArray[np.uint8], tokenizer: ImageTokenizerFacts | None) -> None:
    """Raise RequestError unless these are uint8 [images, height, width, 3] that the tokenizer can encode."""
    if tokenizer is None:
        raise RequestError("the bundle has no image tokenizer: export it with --tokenizer FILE")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise RequestError(f"images are {images.dtype} {list(images.shape)}: use uint8 [images, height, width, 3]")
    side = tokenizer.downsampling
    if images.shape[1] % side or images.shape[2] % side:
        raise RequestError(
            f"images of {images.shape[1]}x{images.shape[2]} are not a whole number of {side}-pixel tokens"
        )


@dataclass
class Watch:
    """Counts the steps of a request, tells the caller of them, and stops where the caller asks."""

    steps: int
    progress: Progress | None
    cancel: CancelFlag | None
    done: int = 0

    def before_step(self) -> None:
        """Raise Cancelled where the caller has asked for it."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"cancelled after {self.done} of {self.steps} steps")

    def after_step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)
