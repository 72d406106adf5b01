"""What the runner asks of an engine: memory to fill, and one call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepBuffers:
    """Host memory of one step width; the runner fills it, the engine fills the outputs."""

    tokens: NDArray[np.int64]  # (rows, width)
    positions: NDArray[np.int64]  # (rows, width)
    write_index: NDArray[np.int64]  # (rows)
    mask: NDArray[np.bool_]  # (rows, 1, width, slots)
    uniforms: NDArray[np.float32]  # (images, width)
    next_tokens: NDArray[np.int64]  # (images, width), output
    logits: NDArray[np.float32] | None = None  # (images, width, vocabulary), output of graphs for verification


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

    @property
    def scalars(self) -> Scalars: ...

    def prepare(self, images: int, rows: int, slots: int, zero_slots: int) -> None:
        """Make caches of that shape ready, their first `zero_slots` slots zero."""

    def buffers(self, width: int) -> StepBuffers: ...

    def run(self, width: int) -> None:
        """Execute one step from the buffers of that width."""

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (images, height, width, 3) of tokens (images, cells)."""

    def close(self) -> None: ...
