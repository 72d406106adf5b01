"""What the exporter needs to know of a model family; each family's file ends with its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.runner.bundle import Order

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    name: str
    variants: Mapping[str, tuple[int, int, int]]  # layers, heads, dim
    order: Order  # of cells
    default_grid: tuple[int, int]  # of a variant
    config: type[Any]  # the dataclass of its dimensions
    module: Callable[[Any], nn.Module]
    checkpoint_shapes: Callable[[Any], Shapes]
    parameter: Callable[[Checkpoint, str], Tensor]  # of the module, from the authors' checkpoint
    schedules: Callable[[Any], list[str]]  # stored where none are asked for
    queries: bool = False  # the module is asked for cells, rather than for what follows each input
