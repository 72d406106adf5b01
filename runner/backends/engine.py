"""What the runner asks of an engine: memory to fill, and one call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepBuffers:
    """Host memory of one kind of step; the runner fills it, the engine fills the outputs.

    `outputs` is the number of queries where the model has them, else the width.
    """

    tokens: NDArray[np.int64]  # (rows, width)
    positions: NDArray[np.int64]  # (rows, width)
    write_index: NDArray[np.int64]  # (rows)
    mask: NDArray[np.bool_]  # (rows, 1, width, slots), or (1, 1, width, slots) where the engine needs just one
    uniforms: NDArray[np.float32]  # (images, outputs)
    next_tokens: NDArray[np.int64]  # (images, outputs), output
    query_positions: NDArray[np.int64] | None = None  # (rows, queries)
    logits: NDArray[np.float32] | None = None  # (images, outputs, vocabulary), output of graphs for verification


@dataclass(frozen=True)
class Scalars:
    """Run-time settings of the sampler, each of shape (1)."""

    guidance: NDArray[np.float32]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]


class Engine(Protocol):
    widths: tuple[int, ...] | None
    """Step widths that it was built for; None where it takes any."""
    largest_batch: int | None
    """Images that it decodes together at most; None where it takes any number."""

    @property
    def device(self) -> str:
        """What it runs on, for figures."""

    def bandwidth(self) -> float:
        """Bytes a second that it can read from memory there, measured now."""

    @property
    def cache_type(self) -> np.dtype[Any]:
        """The type of keys and values in the caches."""

    @property
    def scalars(self) -> Scalars: ...

    def prepare(self, images: int, rows: int, slots: int, zero_slots: int) -> None:
        """Make caches of that shape ready, their first `zero_slots` slots zero."""

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        """The memory of steps of that width, and of that many queries where the model has them."""

    def run(self, width: int, queries: int = 0) -> None:
        """Execute one step from those buffers."""

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (images, height, width, 3) of tokens (images, rows, columns)."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The reverse of `decode`."""

    def close(self) -> None: ...
