"""What the exporter needs to know of a model family. Each family's file says all of it, at its end.

`docs/adding-a-family.md` walks through one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.layers import RotaryDecoder
from arforge.export.model_folder import Description, Words
from arforge.export.rows import Values
from arforge.runner.bundle import Condition, IdsCondition, Order, SamplerDefaults

Grid = tuple[int, int]
"""Rows and columns of tokens."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors, by name."""


class Configuration(Protocol):
    """The dimensions of one model: a frozen dataclass, whose fields a JSON file may hold (`--config`)."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def dim(self) -> int:
        """Width of an embedding."""

    @property
    def n_layer(self) -> int: ...

    @property
    def n_head(self) -> int: ...

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; fewer than `n_head` where heads are grouped."""

    @property
    def head_size(self) -> int: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def cells(self) -> int:
        """Tokens of an image."""

    @property
    def vocab_size(self) -> int:
        """Image tokens, which are the ids [0, vocab_size)."""

    @property
    def caches(self) -> int:
        """Pairs of key and value caches."""

    @property
    def rope_base(self) -> float: ...

    def problems(self) -> Iterable[str]:
        """What keeps these dimensions from being a model, in words."""


C = TypeVar("C", bound=Configuration)


class Size(NamedTuple):
    """What tells a published size from its kin."""

    n_layer: int
    n_head: int
    dim: int


@dataclass(frozen=True)
class Option:
    """A field of the configuration that `arforge export` can set by an option of its own, `--field`."""

    field: str
    choices: tuple[int, ...] | None  # None: any positive number
    help: str


PROMPT_SLOTS = Option("prompt_slots", None, "Tokens of the longest prompt, with the template's if there is one.")
"""Of models that take prompts."""


def no_specials(_: Configuration) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True)
class Family(Generic[C]):
    """One family. Its functions are given configurations without problems."""

    name: str
    order: Order  # of cells that its models were trained for: which schedules fit
    sign: tuple[str, ...]  # parts of tensor names that its checkpoints have, all of them, and others do not
    variants: Mapping[str, Size]  # the published sizes
    grids: tuple[Grid, ...]  # that published checkpoints were trained for
    config: type[C]
    required: tuple[str, ...]  # fields that a --config must hold
    infer: Callable[[Shapes, Callable[[int, int], int]], dict[str, Any]]
    """The configuration's fields that the tensors tell. The second argument gives the heads of a model of so many
    layers and so wide, which they do not tell. Raises KeyError, ValueError or IndexError for other tensors."""
    module: Callable[[C], nn.Module]
    checkpoint_shapes: Callable[[C], Shapes]  # of the authors' checkpoints
    parameter: Callable[[C, Checkpoint, str], Values]
    """Of the module, by its name there, from the authors' checkpoint; large ones as Rows, which pass in blocks."""
    condition: Callable[[C], Condition]
    schedules: Callable[[C], list[str]]  # stored where none are asked for
    sampler: Callable[[C], SamplerDefaults]  # of the authors
    specials: Callable[[C], tuple[int, ...]] = no_specials  # ids of learned tokens that schedules feed by index
    row_end: int | None = None  # the index of the special token that ends a row
    options: tuple[Option, ...] = ()
    condition_module: Callable[[C], nn.Module] | None = None
    """What makes rows of a condition from features; its parameters are named as the checkpoint's. None: classes."""
    queries: bool = False  # the module is asked for cells, rather than for what follows each input
    positions: Literal["grid", "sequence"] = "grid"  # what a row of the rotary table stands for
    tables: Callable[[C], dict[str, Tensor]] = RotaryDecoder.tables
    """The module's buffers, which no checkpoint holds. They have a row a position."""
    tensors: Callable[[Iterable[str]], dict[str, str]] | None = None
    """Which of a checkpoint's names stand for those of `checkpoint_shapes`, by these, where there are several layouts
    or models with other parts. None: every one for itself."""
    model_types: tuple[str, ...] = ()  # of the `config.json` beside its checkpoints, where these have one
    described: Callable[[Description, Shapes], dict[str, Any]] | None = None
    """The configuration's fields that a `config.json` tells, with the tensors' help; the grid may be among them."""
    template: Callable[[C, Words], IdsCondition] | None = None
    """The condition of a model that reads ids, by what its folder tells of its words."""
    token_pixels: int = 16  # of an image, a side of a token
