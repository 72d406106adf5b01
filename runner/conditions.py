"""What stands before the images of a request: classes, or prompts, as the decoder takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition, ModelFacts
from arforge.runner.errors import ArforgeError, BundleError, EngineError
from arforge.runner.request import Subjects
from arforge.runner.step_graph import condition, difference

if TYPE_CHECKING:
    import onnxruntime

Features = NDArray[np.float32]
"""Of one prompt: (length, width), a row a token of its text."""

GRANULE = 128  # of prompt slots; see `prompt_slots`


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one row of a step has before its image. Prompts are equal if a step cannot tell them apart."""

    token: int  # the id that schedules feed as the condition: a class, or the first beyond the step's table
    rows: NDArray[np.float32] | None = None  # (length, dim), of which the last is that token's; None for a class
    keep: bool = False  # whether later requests are likely to have it too

    @property
    def before(self) -> int:
        """How many of its rows stand before the condition token."""
        return 0 if self.rows is None else len(self.rows) - 1

    @cached_property
    def key(self) -> tuple[int, bytes]:
        return self.token, b"" if self.rows is None else hashlib.sha256(self.rows.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Conditions:
    """Those of several images, one an image."""

    conditional: tuple[Prompt, ...]
    unconditional: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.conditional)

    def part(self, images: slice) -> Conditions:
        return Conditions(self.conditional[images], self.unconditional[images])

    def rows(self, guided: bool) -> tuple[Prompt, ...]:
        """A prompt a row of a step."""
        return self.conditional + self.unconditional if guided else self.conditional

    @property
    def longest(self) -> int:
        """Of their prompts, the rows before the condition token."""
        return max(prompt.before for prompt in (*self.conditional, *self.unconditional))


def prompt_slots(model: ModelFacts, longest: int) -> int:
    """Cache slots before a schedule's own, for prompts of up to `longest` rows before the condition token.

    They grow in steps of 128, so that an image's neighbours do not move its own sums: in blocks of that many, zeros
    before change nothing. Short prompts and long ones get as many where the model has no more than that.
    """
    if isinstance(model.condition, ClassCondition):
        return 0
    return min(model.condition.slots - 1, -(-longest // GRANULE) * GRANULE)


def class_conditions(model: ModelFacts, classes: Iterable[int]) -> Conditions:
    """Classes, whose ids the step's own table holds."""
    condition = model.class_condition
    conditional = tuple(Prompt(condition.first_class + int(label)) for label in classes)
    return Conditions(conditional, (Prompt(condition.null_class),) * len(conditional))


class ConditionGraph:
    """A bundle's graph from features to rows of a condition, opened when it is first used."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._session: onnxruntime.InferenceSession | None = None

    def __call__(self, features: Sequence[Features]) -> Conditions:
        """One image a prompt. Each prompt passes alone, so that its rows depend on nothing else."""
        pairs: dict[bytes, tuple[Prompt, Prompt]] = {}
        keys = [one.tobytes() for one in features]
        for key, one in zip(keys, features, strict=True):
            if key not in pairs:
                given, none = self._run(one)
                token = self._bundle.model.ids
                pairs[key] = Prompt(token, given), Prompt(token, none, keep=True)
        chosen = [pairs[key] for key in keys]
        return Conditions(tuple(pair[0] for pair in chosen), tuple(pair[1] for pair in chosen))

    def _run(self, features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rows of one prompt, and those that stand for none, (length, dim) each.

        Raises EngineError if the graph fails or gives others.
        """
        path, shape = self._bundle.graph("condition", "fp32"), (len(features), self._bundle.model.dim)
        try:
            given, none = self._opened(path).run(["condition", "unconditional"], {"features": features[None]})
        except ArforgeError:
            raise
        except Exception as error:  # the binding's exception classes share no narrower public base
            raise EngineError(f"ONNX Runtime failed in {path}: {error}") from error
        if (given.shape, none.shape) != ((1, *shape), shape):
            raise EngineError(
                f"{path} gives rows {list(given.shape)} and {list(none.shape)} for a prompt of {len(features)} tokens, "
                f"expected {[1, *shape]} and {list(shape)}: export the bundle again"
            )
        return given[0], none

    def _opened(self, path: Path) -> onnxruntime.InferenceSession:
        if self._session is None:
            session = open_session(path, self._threads)
            wanted, found = condition(self._bundle.model), contract_of(session)
            problem = difference(wanted.inputs, found.inputs) or difference(wanted.outputs, found.outputs)
            if problem:
                raise BundleError(f"{path}: {problem}: export the bundle again")
            self._session = session
        return self._session

    def close(self) -> None:
        self._session = None


def sample_subjects(model: ModelFacts, images: int, *, spread: bool = True) -> Subjects:
    """What to try a model with: classes, or random features of prompts of unequal lengths.

    Classes are `spread` over all there are, or the first ones.
    """
    condition = model.condition
    if isinstance(condition, ClassCondition):
        last, steps = condition.classes - 1, max(1, images - 1)
        return Subjects("classes", tuple(last * i // steps if spread else i % (last + 1) for i in range(images)))
    return Subjects("features", tuple(sample_features(model, images)))


def sample_conditions(bundle: Bundle, images: int) -> Conditions:
    """Those of `sample_subjects`."""
    subjects = sample_subjects(bundle.model, images)
    if subjects.by == "classes":
        return class_conditions(bundle.model, subjects.values)
    return ConditionGraph(bundle)(subjects.values)


def sample_features(model: ModelFacts, images: int, seed: int = 0) -> list[Features]:
    """Random features of prompts of unequal lengths, as large as those of a normed encoder."""
    assert isinstance(model.condition, FeaturesCondition)
    random = np.random.default_rng(seed)
    longest = min(model.condition.slots, 24)
    lengths = [1 + (5 * index + 11) % longest for index in range(images)]
    return [random.standard_normal((length, model.condition.width), np.float32) * 0.2 for length in lengths]
