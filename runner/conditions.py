"""What stands before the images of a request: classes, or prompts, as the decoder takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition, IdsCondition, ModelFacts
from arforge.runner.errors import ArforgeError, BundleError, EngineError
from arforge.runner.request import Subjects
from arforge.runner.step_graph import condition, difference
from arforge.runner.text.id_prompts import IdPrompts, Ids

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
    together: int = 0  # how many of its first rows see each other; the others see what stands before them

    @property
    def before(self) -> int:
        """How many of its rows stand before the condition token."""
        return 0 if self.rows is None else len(self.rows) - 1

    @cached_property
    def key(self) -> tuple[int, int, bytes]:
        rows = b"" if self.rows is None else hashlib.sha256(self.rows.tobytes()).digest()
        return self.token, self.together, rows

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
    most, rounded = model.condition.slots - 1, -(-longest // GRANULE) * GRANULE
    return min(most, rounded) if most <= GRANULE else rounded


def class_conditions(model: ModelFacts, classes: Iterable[int]) -> Conditions:
    """Classes, whose ids the step's own table holds."""
    condition = model.class_condition
    conditional = tuple(Prompt(condition.first_class + int(label)) for label in classes)
    return Conditions(conditional, (Prompt(condition.null_class),) * len(conditional))


class ConditionGraph:
    """A bundle's graph from features or ids to rows of a condition, opened when it is first used."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._session: onnxruntime.InferenceSession | None = None

    def of_features(self, features: Sequence[Features]) -> Conditions:
        """One image a prompt. Each prompt passes alone, so that its rows depend on nothing else."""
        pairs: dict[bytes, tuple[Prompt, Prompt]] = {}
        keys = [one.tobytes() for one in features]
        for key, one in zip(keys, features, strict=True):
            if key not in pairs:
                given, none = self._run("features", one)
                token = self._bundle.model.ids
                pairs[key] = Prompt(token, given), Prompt(token, none, keep=True)
        chosen = [pairs[key] for key in keys]
        return Conditions(tuple(pair[0] for pair in chosen), tuple(pair[1] for pair in chosen))

    def of_ids(self, prompts: IdPrompts) -> Conditions:
        """One image a prompt, as `of_features`."""
        token, start, made = self._bundle.model.ids, prompts.together, {}

        def made_once(ids: Ids, keep: bool) -> Prompt:
            key = ids.tobytes(), keep
            if key not in made:
                (rows,) = self._run("ids", ids)
                made[key] = Prompt(token, rows, keep, 0 if start is None else max(0, len(ids) - start))
            return made[key]

        conditional = tuple(made_once(ids, keep=False) for ids in prompts.conditional)
        return Conditions(conditional, tuple(made_once(ids, keep=True) for ids in prompts.unconditional))

    def _run(self, name: str, prompt: NDArray[Any]) -> list[NDArray[np.float32]]:
        """The outputs of the graph for one prompt, (length, dim) each: its rows, and of features those of none.

        `name`: of its input. Raises EngineError if the graph fails or gives others.
        """
        model = self._bundle.model
        path, shape = self._bundle.graph("condition", "fp32"), (len(prompt), model.dim)
        outputs = [tensor.name for tensor in condition(model).outputs]
        try:
            rows, *others = self._opened(path).run(outputs, {name: prompt[None]})
        except ArforgeError:
            raise
        except Exception as error:  # the binding's exception classes share no narrower public base
            raise EngineError(f"ONNX Runtime failed in {path}: {error}") from error
        if rows.shape != (1, *shape) or any(other.shape != shape for other in others):
            found = " and ".join(str(list(array.shape)) for array in (rows, *others))
            wanted = " and ".join([str([1, *shape]), *[str(list(shape))] * len(others)])
            raise EngineError(
                f"{path} gives rows {found} for a prompt of {len(prompt)} tokens, expected {wanted}: export the bundle "
                "again"
            )
        return [rows[0], *others]

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
    """What to try a model with: classes, or random features, or ids, of prompts of unequal lengths.

    Classes are `spread` over all there are, or the first ones. Of prompts in ids, unconditional rows see the ids that
    begin the image, which every model has.
    """
    condition = model.condition
    if isinstance(condition, ClassCondition):
        last, steps = condition.classes - 1, max(1, images - 1)
        return Subjects("classes", tuple(last * i // steps if spread else i % (last + 1) for i in range(images)))
    if isinstance(condition, IdsCondition):
        return Subjects("ids", tuple(sample_ids(condition, images)), {"unconditional": "image"})
    return Subjects("features", tuple(sample_features(model, images)))


def sample_conditions(bundle: Bundle, images: int) -> Conditions:
    """Those of `sample_subjects`; of prompts in ids, unconditional rows see the ids that begin the image."""
    subjects, condition = sample_subjects(bundle.model, images), bundle.model.condition
    if isinstance(condition, ClassCondition):
        return class_conditions(bundle.model, subjects.values)
    graph = ConditionGraph(bundle)
    if isinstance(condition, IdsCondition):
        prompts = list(subjects.values)
        return graph.of_ids(IdPrompts(prompts, [one[-condition.start :] for one in prompts], together=None))
    return graph.of_features(subjects.values)


def sample_ids(condition: IdsCondition, images: int, seed: int = 0) -> list[Ids]:
    """Whole prompts of random ids between those of the template, of unequal lengths."""
    random = np.random.default_rng(seed)
    room = condition.slots - len(condition.prefix) - len(condition.suffix)
    lengths = [min(room, 1 + (5 * index + 11) % 24) for index in range(images)]
    middles = [random.integers(0, condition.vocabulary, length) for length in lengths]
    return [np.array([*condition.prefix, *middle, *condition.suffix], np.int64) for middle in middles]


def sample_features(model: ModelFacts, images: int, seed: int = 0) -> list[Features]:
    """Random features of prompts of unequal lengths, as large as those of a normed encoder."""
    assert isinstance(model.condition, FeaturesCondition)
    random = np.random.default_rng(seed)
    longest = min(model.condition.slots, 24)
    lengths = [1 + (5 * index + 11) % longest for index in range(images)]
    return [random.standard_normal((length, model.condition.width), np.float32) * 0.2 for length in lengths]
