"""Tensors that are read in blocks of rows, so that a weight of any size passes through little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

BLOCK = 1 << 25  # bytes of float32 that are in memory at once, a few times over


@dataclass(frozen=True)
class Rows:
    """A tensor by its rows, those of its first dimension; a number stands as one row of itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]  # rows [first, end), of that type

    @property
    def count(self) -> int:
        return self.shape[0] if self.shape else 1

    def __getitem__(self, part: slice) -> Rows:
        """The rows of a slice without a step. Raises IndexError for one that leaves the tensor."""
        first, end = part.start or 0, self.count if part.stop is None else part.stop
        if not self.shape or part.step is not None or not 0 <= first <= end <= self.count:
            raise IndexError(f"rows [{part.start}, {part.stop}) with step {part.step} of a tensor {list(self.shape)}")
        return Rows((end - first, *self.shape[1:]), self.dtype, lambda a, b: self.read(first + a, first + b))

    def map(self, function: Callable[[Tensor], Tensor], width: int) -> Rows:
        """A matrix of `width` columns whose rows `function` makes of these, of a block at a time and of their type."""
        return Rows((self.count, width), self.dtype, lambda a, b: function(self.read(a, b)))

    def tensor(self) -> Tensor:
        """All of it in memory."""
        return self.read(0, self.count)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks that are small in memory, each with the number of its first row."""
        size = max(1, BLOCK // max(1, 4 * math.prod(self.shape[1:])))
        for first in range(0, self.count, size):
            yield first, self.read(first, min(first + size, self.count))


Values = Tensor | Rows
"""Of a parameter."""


def rows_of(values: Values) -> Rows:
    if isinstance(values, Rows):
        return values
    return Rows(tuple(values.shape), values.dtype, lambda a, b: values[a:b] if values.dim() else values)


def concatenate(parts: Sequence[Values]) -> Rows:
    """The rows of several tensors below each other, in the widest of their types. Raises ValueError if they differ."""
    rows = [rows_of(part) for part in parts]
    width = {one.shape[1:] for one in rows}
    if len(width) != 1 or not all(one.shape for one in rows):
        raise ValueError(f"tensors {', '.join(str(list(one.shape)) for one in rows)} do not stand below each other")
    ends = list(accumulate(one.count for one in rows))
    dtype = reduce(torch.promote_types, (one.dtype for one in rows))

    def read(first: int, end: int) -> Tensor:
        found = []
        for one, stop in zip(rows, ends, strict=True):
            start = stop - one.count
            a, b = max(first, start), min(end, stop)
            if a < b:
                found.append(one.read(a - start, b - start).to(dtype))
        return torch.cat(found) if found else rows[0].read(0, 0).to(dtype)

    return Rows((ends[-1], *width.pop()), dtype, read)
