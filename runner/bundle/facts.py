"""What a manifest says, typed: model, condition, image tokenizer, sampler, graphs, schedules, engines, files.

Field names are the manifest's own, so that `dataclasses.asdict` gives its JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arforge.runner.errors import RequestError

Order = Literal["raster", "regions", "random"]
"""The order of cells that a model was trained for."""

Captions = Literal["clean", "raw"]
"""Texts are cleaned as the authors do (`runner/text/captions.py`), or taken as they are."""


Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
"""Of the last two, weights or more: in blocks or per output, with scales."""

Unconditional = Literal["padded", "image", "negative"]
"""What unconditional rows see: the prompt with its middle padded, its last ids, which begin the image, or another."""


@dataclass(frozen=True)
class ClassCondition:
    """A class id stands where a prompt would."""

    classes: int
    first_class: int  # id of class 0
    null_class: int  # id of the unconditional rows
    kind: Literal["class"] = "class"


@dataclass(frozen=True)
class FeaturesCondition:
    """A prompt is the output of a text encoder: at most `slots` rows of `width` numbers."""

    slots: int
    width: int
    captions: Captions  # what is done to a text before it is encoded, where a request does not say
    kind: Literal["features"] = "features"


@dataclass(frozen=True)
class IdsCondition:
    """A prompt is at most `slots` ids of a vocabulary of its own, template included.

    The template: ids, a text that is `before` and `after` the user's, more ids. The last `start` ids begin the image.
    """

    slots: int
    vocabulary: int
    prefix: tuple[int, ...]  # ids before the text
    before: str
    after: str
    stripped: bool  # whether the user's text loses the blanks around it
    suffix: tuple[int, ...]  # ids after the text
    start: int
    padding: int | None  # the id in place of left-out ones, where unconditional rows may see a padded prompt
    reserved: tuple[tuple[int, int], ...]  # first and last of ids that a user's text may not come to
    negative: tuple[int, ...]  # a whole prompt that unconditional rows may see; empty where the model has none
    unconditional: Unconditional  # where a request does not say
    kind: Literal["ids"] = "ids"


Condition = ClassCondition | FeaturesCondition | IdsCondition


@dataclass(frozen=True)
class ModelFacts:
    """Facts of the decoder. Image tokens are the ids [0, vocabulary)."""

    family: str
    variant: str | None
    config: Mapping[str, Any]  # the dimensions as exported
    order: Order
    grid: tuple[int, int]  # rows, columns
    vocabulary: int
    dim: int  # width of an embedding
    condition: Condition
    specials: tuple[int, ...]  # ids of learned tokens that schedules feed by their index here
    row_end: int | None  # the index of the special token that ends a row of the grid
    labels: tuple[str, ...] | None  # a name a class
    source_precision: Literal["fp32", "bf16", "fp16"]  # of the checkpoint's weights
    stored_precision: Precision  # what the bundle's step graphs hold them as; they compute in float32
    queries: bool  # the step graph takes the cells to decide as `query_positions`
    positions: Literal["grid", "sequence"]  # what a row of the rotary table stands for: a cell, or a place in line
    position_rows: int  # of that table
    layers: int
    caches: int  # pairs of key and value caches
    kv_heads: int
    head_size: int  # of the caches
    parameters: int

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def last_position(self) -> int:
        """The largest position of a schedule's inputs, 0 being the condition token's."""
        return self.cells + (0 if self.row_end is None else self.grid[0])

    @property
    def class_condition(self) -> ClassCondition:
        """The condition of a class-conditional model. Raises RequestError for a model of another kind."""
        if not isinstance(self.condition, ClassCondition):
            raise RequestError(f"this {self.family} model takes a prompt ({self.condition.kind}), not a class")
        return self.condition

    @property
    def ids(self) -> int:
        """Rows of the embedding table: one more than the largest id."""
        known = [self.vocabulary - 1, *self.specials]
        if isinstance(self.condition, ClassCondition):
            known.append(self.condition.null_class)
        return 1 + max(known)


@dataclass(frozen=True)
class ImageTokenizerFacts:
    kind: Literal["vq", "vision-vq"]
    codebook_size: int
    codebook_width: int
    downsampling: int  # pixels a token, a side
    image_size: tuple[int, int]  # height, width


STEPS = {"uniform": "step", "noise": "step-noise"}
"""The step graph by what it draws with."""


@dataclass(frozen=True)
class SamplerDefaults:
    """Which sampler is traced into the step graphs, and a request's settings where it names none."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float
    kind: Literal["uniform", "noise"] = "uniform"

    @property
    def graph(self) -> str:
        """The step graph that draws so."""
        return STEPS[self.kind]


@dataclass(frozen=True)
class Graph:
    name: str  # such as "step"
    precision: str
    path: str
    weights: str  # the file of its external data

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.precision


@dataclass(frozen=True)
class StoredSchedule:
    specification: str
    path: str
    steps: int
    slots: int  # of the cache
    widths: tuple[int, ...]  # tokens a step


@dataclass(frozen=True)
class BuiltEngine:
    target: str
    precision: str
    device: str
    path: str  # of its identity

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one engine of."""
        return self.target, self.precision, self.device

    def __str__(self) -> str:
        return f"{self.target} {self.precision} for {self.device}"


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str
