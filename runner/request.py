"""The arguments of a generation, checked; and what watches over it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import RequestBuffers
from arforge.runner.bundle import ImageTokenizerFacts, ModelFacts, SamplerDefaults
from arforge.runner.errors import Cancelled, RequestError
from arforge.runner.labels import class_of

if TYPE_CHECKING:
    from arforge.runner.preview import Preview

MAX_SEED = 2**64 - 1
MAX_SCALE = 1000  # of guidance and temperature
MAX_TOP_K = 2**30
MAX_BATCH = 2**30
DEFAULT_BATCH = 32
OF_IDS = ("unconditional", "negative", "negative_ids", "prefill")  # go with models that read ids of prompts
ASKED = ("classes", "prompts", "features", "ids")  # a request has one of them

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all: the steps of a request, or the images of an evaluation."""


class CancelFlag(Protocol):
    """Anything like threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Request:
    """What to generate: one image for each class, or for each prompt: a text, its features, or its tokens' ids.

    `seeds` (default 0, 1, …) decide each image alone: neither the batch nor the order matters. Schedule and sampler
    settings left out are the bundle's defaults. Guidance, temperature, top-k, top-p and `greedy`, which is temperature
    0, are one value for all images or one an image; an image gets what it would get alone.

    `batch`: images decoded at a time, fewer where the engine was built for fewer. `known`, for models of random order:
    tokens that stay, int64 [rows, columns] for all images or [images, rows, columns], -1 in the cells to decide
    (`Runner.encode` gives those of an image). A grid larger than the model's is decoded window by window.
    """

    classes: Sequence[int | str] | None = None  # by number, or by name where the bundle has names
    seeds: Sequence[int] | None = None
    schedule: str | None = None
    guidance: float | Sequence[float] | None = None
    temperature: float | Sequence[float] | None = None
    top_k: int | Sequence[int] | None = None
    top_p: float | Sequence[float] | None = None
    greedy: bool | Sequence[bool] = False
    batch: int = DEFAULT_BATCH
    known: NDArray[np.int64] | None = None
    prompts: Sequence[str] | None = None
    features: Sequence[NDArray[np.float32]] | None = None  # of prompts, (tokens, width) each
    ids: Sequence[NDArray[np.int64]] | None = None  # of prompts' tokens, (tokens) each, with the one that ends it
    captions: str | None = None  # "clean": prompts are cleaned as in training; "raw"; None: the bundle's default
    truncate: bool = False  # whether prompts that are too long are cut off
    unconditional: str | None = None  # what unconditional rows see: "padded", "image" or "negative"; None: the bundle's
    negative: str | Sequence[str] | None = None  # negative prompts in words, one for all images or one an image
    negative_ids: NDArray[np.int64] | Sequence[NDArray[np.int64]] | None = None  # or as ids, whole prompts
    prefill: str | None = None  # "causal", or "bidirectional": a prompt's tokens see each other; None: causal


@dataclass(frozen=True)
class Sampling:
    """Sampler settings of one image. Raises RequestError for a value out of range."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        number("guidance", self.guidance, f"use 1 (off) to {MAX_SCALE}", lambda value: 1 <= value <= MAX_SCALE)
        number("temperature", self.temperature, f"use 0 (greedy) to {MAX_SCALE}", lambda value: 0 <= value <= MAX_SCALE)
        whole("top-k", self.top_k, 0, MAX_TOP_K)
        number("top-p", self.top_p, "use a number in (0, 1]; 1 is off", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class BatchSampling:
    """Sampler settings of several images, each of shape (images)."""

    guidance: NDArray[np.float64]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]

    @property
    def guided(self) -> bool:
        """Whether some image needs its unconditional row."""
        return bool((self.guidance != 1).any())

    def part(self, images: slice) -> BatchSampling:
        return BatchSampling(self.guidance[images], self.temperature[images], self.top_k[images], self.top_p[images])

    def fill(self, settings: RequestBuffers) -> None:
        settings.temperature[:] = self.temperature
        settings.top_k[:] = self.top_k
        settings.top_p[:] = self.top_p


def sampling_of(request: Request, defaults: SamplerDefaults, images: int) -> BatchSampling:
    """The settings of each image. Raises RequestError for values out of range, or neither one nor one an image."""

    def each(what: str, given: Any, default: Any = None) -> list[Any]:
        if given is None:
            given = default
        if not is_list(given):
            return [given] * images
        if len(given) != images:
            raise RequestError(f"{len(given)} values of {what} for {images} images: give one for all, or one an image")
        return list(given)

    guidance = each("guidance", request.guidance, defaults.guidance)
    temperature = each("temperature", request.temperature, defaults.temperature)
    cold = [truth("greedy", value) for value in each("greedy", request.greedy, default=False)]
    degrees = [0.0 if greedy else one for one, greedy in zip(temperature, cold, strict=True)]
    top_k, top_p = each("top-k", request.top_k, defaults.top_k), each("top-p", request.top_p, defaults.top_p)
    for values in zip(guidance, degrees, top_k, top_p, strict=True):
        Sampling(*values)
    return BatchSampling(
        guidance=np.array(guidance, np.float64),
        temperature=np.array(degrees, np.float32),
        top_k=np.array(top_k, np.int64),
        top_p=np.array(top_p, np.float32),
    )


def number(what: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    """Raise RequestError unless `value` is a finite number that is allowed."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{what} {value!r} is not a number: {allowed}")
    try:
        fine = math.isfinite(value) and holds(float(value))
    except OverflowError:  # a whole number beyond all floats
        fine = False
    if not fine:
        raise RequestError(f"{what} {value} is out of range: {allowed}")


def whole(what: str, value: Any, least: int, most: int) -> int:
    """`value` as an int. Raises RequestError unless it is a whole number in that range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r} is not a whole number: use {least} to {most}") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise RequestError(f"{what} {value} is out of range: use {least} to {most}")
    return number


def truth(what: str, value: Any) -> bool:
    """`value` as a bool, or 0 or 1. Raises RequestError for others."""
    return bool(value) if isinstance(value, bool | np.bool_) else bool(whole(what, value, 0, 1))


def is_list(values: Any) -> bool:
    """Whether these are one value an image: a sequence or an array, but no text."""
    if isinstance(values, np.ndarray):
        return values.ndim > 0
    return isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray)


def listed(what: str, values: Any) -> Sequence[Any]:
    """`values`. Raises RequestError for what is no list of them."""
    if not is_list(values):
        raise RequestError(f"{what} {values!r} are no list: give one for each image, such as [0, 1]")
    found: Sequence[Any] = values
    return found


def asked_of(request: Request) -> tuple[str, Sequence[Any]]:
    """What the images are asked for by, and that for each. Raises RequestError for nothing, or for several."""
    given = [name for name in ASKED if getattr(request, name) is not None]
    if len(given) != 1:
        several = f"{' and '.join(given)} are given" if given else "nothing is asked for"
        raise RequestError(f"{several}: give one of {', '.join(ASKED)}")
    (name,) = given
    values = listed(name, getattr(request, name))
    if len(values) == 0:
        raise RequestError(f"no {name} given: name at least one")
    return name, values


def check_classes(classes: Sequence[int | str], model: ModelFacts) -> NDArray[np.int64]:
    """Classes by number or name as numbers, int64 [images]. Raises RequestError."""
    most = model.class_condition.classes - 1
    numbers = [class_of(one, model.labels) if isinstance(one, str) else one for one in classes]
    return np.array([whole("class", number, 0, most) for number in numbers], dtype=np.int64)


def check_seeds(seeds: Sequence[int] | None, images: int) -> NDArray[np.uint64]:
    """One seed an image, uint64 [images]; None: 0, 1, … Raises RequestError."""
    if seeds is None:
        return np.arange(images, dtype=np.uint64)
    if len(listed("seeds", seeds)) != images:
        raise RequestError(f"{len(seeds)} seeds for {images} images: give one seed an image")
    return np.array([whole("seed", seed, 0, MAX_SEED) for seed in seeds], dtype=np.uint64)


def check_schedule(schedule: str | None, default: str) -> str:
    """The specification as given, or the default. Raises RequestError for what is no text."""
    if schedule is not None and not isinstance(schedule, str):
        raise RequestError(f"schedule {schedule!r} is no text: use one such as 'ntp', or None for {default!r}")
    return schedule or default


def check_images(images: NDArray[np.uint8], tokenizer: ImageTokenizerFacts | None) -> None:
    """Raise RequestError unless these are uint8 [images, height, width, 3] that the tokenizer can encode."""
    if tokenizer is None:
        raise RequestError("the bundle has no image tokenizer: export it with --tokenizer FILE")
    if not isinstance(images, np.ndarray):
        raise RequestError(f"images are a {type(images).__name__}: use an array, uint8 [images, height, width, 3]")
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

    progress: Progress | None = None
    cancel: CancelFlag | None = None
    preview: Preview | None = None
    steps: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        """Raises RequestError for what cannot be called, before the work."""
        if self.progress is not None and not callable(self.progress):
            raise RequestError(f"progress {self.progress!r} cannot be called: give a function of steps done and steps")
        if self.preview is not None and not callable(self.preview):
            raise RequestError(f"preview {self.preview!r} cannot be called: give a function of partial images")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise RequestError(f"cancel {self.cancel!r} has no is_set(): give something like threading.Event()")

    def before_step(self) -> None:
        """Raise Cancelled if the caller has asked for it."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"cancelled after {self.done} of {self.steps} steps")

    def after_step(self, done: int) -> None:
        """Tell the caller; `done`: steps of the request that are behind all images decoded so far."""
        self.done = done
        if self.progress is not None:
            self.progress(self.done, self.steps)


@dataclass(frozen=True)
class Subjects:
    """What images are asked for by, one after another and round again: for commands that make many of them."""

    by: str  # one of ASKED
    values: tuple[Any, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a request, that go with prompts

    def __post_init__(self) -> None:
        """Raises RequestError if there are none."""
        if not self.values:
            raise RequestError(f"no {self.by} given: name at least one")

    def take(self, images: Iterable[int]) -> dict[str, Any]:
        """The arguments of `Runner.generate` that ask for images of these numbers."""
        return {self.by: [self.values[index % len(self.values)] for index in images], **self.settings}

    def to_json(self) -> dict[str, Any]:
        """As files of figures hold it; of arrays their number alone."""
        return {self.by: len(self.values) if self.by in ("features", "ids") else self.values}

    def name(self, image: int) -> str:
        """What an image was asked for by, for messages."""
        number = image % len(self.values)
        return f"class {self.values[number]}" if self.by == "classes" else f"prompt {number}"
