"""Caches of an engine that only reads them, and the keys and values of a step, which are put there behind it.

All caches lie in one block, and so do a step's rows of them: a plane for each cache, and in a plane a line for each
head of each row of the batch. So what rows that write to the same slots have, in all caches, is one box, and one
three-dimensional copy puts it in place; in most schedules that is all rows. It is queued behind the step's CUDA graph
and not in it, since where it goes to changes with each step, and when the sampled tokens are there, so that it runs
while the host prepares the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.tensorrt_program import ALIGNMENT
from arforge.runner.step_graph import cache_names, update_name


@dataclass(frozen=True)
class Planes:
    """Of `line` bytes a line; a plane has `lines` of them, the last of which may only align the next."""

    line: int
    lines: int

    @classmethod
    def of(cls, line: int, lines: int) -> Planes:
        step = ALIGNMENT // gcd(line, ALIGNMENT)
        return cls(line, -(-lines // step) * step)

    @property
    def size(self) -> int:
        """Bytes of a plane."""
        return self.line * self.lines


class PlacedRows:
    def __init__(
        self, gpu: Gpu, caches: int, heads: int, slots: int, slot_bytes: int, steps: Iterable[tuple[int, int]]
    ) -> None:
        """`heads` of keys and values; `slot_bytes`: what a head has of a slot; `steps`: rows and width of each."""
        self._gpu, self._names, self._heads, self._slot_bytes = gpu, cache_names(caches), heads, slot_bytes
        self._steps = {step: Planes.of(step[1] * slot_bytes, step[0] * heads) for step in steps}
        self._planes = Planes.of(slots * slot_bytes, max(rows for rows, _ in self._steps) * heads)
        count = len(self._names)
        self._caches = gpu.allocate(count * self._planes.size)
        self._updates = gpu.allocate(count * max(planes.size for planes in self._steps.values()))

    @property
    def addresses(self) -> dict[str, int]:
        """Of each cache."""
        return {name: self._caches + index * self._planes.size for index, name in enumerate(self._names)}

    def bound(self, rows: int, width: int) -> dict[str, int]:
        """The addresses of all inputs and outputs that stay on the device, of a step of that shape."""
        size = self._steps[rows, width].size
        return self.addresses | {update_name(name): self._updates + i * size for i, name in enumerate(self._names)}

    def put(self, width: int, write_index: NDArray[np.int64]) -> None:
        """Queue the copies of what the step that has just run gave, to where each row of the batch writes."""
        given = self._steps[len(write_index), width]
        for first, last in runs(write_index):
            line = first * self._heads
            offset = line * self._planes.line + int(write_index[first]) * self._slot_bytes
            self._gpu.copy_box(
                (given.line, (last - first) * self._heads, len(self._names)),
                target=(self._caches + offset, self._planes.line, self._planes.lines),
                source=(self._updates + line * given.line, given.line, given.lines),
            )


def runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where equal values that follow each other begin and end."""
    ends = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(ends))
