"""The caches of a TensorRT engine in device memory, in one of the two orders that an identity tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.tensorrt_identity import has_views
from arforge.runner.bundle import ModelFacts
from arforge.runner.step_graph import bound_caches, cache_names


class CacheMemory(Protocol):
    """`rows` are always those of the programs that run now: the order in memory may depend on how many there are."""

    @property
    def addresses(self) -> Mapping[str, int]:
        """Where each cache begins."""

    @property
    def bound(self) -> Mapping[str, int]:
        """The same, by the names of all tensors that have their place there."""

    def clear(self, rows: int, slots: int) -> None:
        """Queue zeros into the first slots."""

    def read(self, name: str, row: int, rows: int, slots: int) -> NDArray[Any]:
        """Queue a copy of the first slots of one row, (kv_heads, slots, head_size): there after `synchronize`."""

    def write(self, name: str, places: Iterable[int], rows: int, first: int, values: NDArray[Any]) -> None:
        """Put keys or values, (kv_heads, count, head_size), into slots of each of these rows."""


def place_caches(
    gpu: Gpu,
    model: ModelFacts,
    identity: Mapping[str, Any],
    dtype: np.dtype[Any],
    rows: int,
    addresses: Mapping[str, int] | None = None,
) -> CacheMemory:
    """Memory for as many rows, all zero: NaN in a slot that no mask lets through would spoil its row all the same.

    `addresses`: where the caches lie, with rows first; None: they are allocated.
    """
    slots = int(identity["slots"])
    if has_views(identity):
        return SlotsFirst(gpu, model, slots, dtype, rows)
    return RowsFirst(gpu, model, slots, dtype, rows, addresses)


class RowsFirst:
    """[rows, kv_heads, slots, head_size]."""

    def __init__(
        self,
        gpu: Gpu,
        model: ModelFacts,
        slots: int,
        dtype: np.dtype[Any],
        rows: int,
        addresses: Mapping[str, int] | None = None,
    ) -> None:
        self._gpu, self._heads, self._size, self._dtype = gpu, model.kv_heads, model.head_size, dtype
        self._slot_bytes = dtype.itemsize * model.head_size
        self._head_bytes = slots * self._slot_bytes
        size = rows * self._heads * self._head_bytes
        self.addresses = addresses or {name: gpu.allocate(size) for name in cache_names(model.caches)}
        self.bound = bound_caches(self.addresses)
        self.clear(rows, slots)

    def clear(self, rows: int, slots: int) -> None:
        for address in self.addresses.values():
            self._gpu.clear(address, self._head_bytes, slots * self._slot_bytes, rows * self._heads)

    def read(self, name: str, row: int, rows: int, slots: int) -> NDArray[Any]:
        found = np.zeros((self._heads, slots, self._size), self._dtype)
        self._gpu.download_rows(found, self._address(name, row), self._head_bytes)
        return found

    def write(self, name: str, places: Iterable[int], rows: int, first: int, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values)
        for row in places:
            self._gpu.upload_rows(self._address(name, row) + first * self._slot_bytes, self._head_bytes, values)
        self._gpu.synchronize()  # before the caller's array may change

    def _address(self, name: str, row: int) -> int:
        return self.addresses[name] + row * self._heads * self._head_bytes


class SlotsFirst:
    """[slots, rows, kv_heads, head_size], which attention reads by views at the same addresses."""

    def __init__(self, gpu: Gpu, model: ModelFacts, slots: int, dtype: np.dtype[Any], rows: int) -> None:
        self._gpu, self._heads, self._size, self._dtype = gpu, model.kv_heads, model.head_size, dtype
        self._row_bytes = dtype.itemsize * model.kv_heads * model.head_size
        names = cache_names(model.caches)
        self.addresses = {name: gpu.allocate(slots * rows * self._row_bytes) for name in names}
        self.bound = bound_caches(self.addresses, views=True)
        self.clear(rows, slots)

    def clear(self, rows: int, slots: int) -> None:
        line = rows * self._row_bytes
        for address in self.addresses.values():
            self._gpu.clear(address, line, line, slots)  # one block

    def read(self, name: str, row: int, rows: int, slots: int) -> NDArray[Any]:
        found = np.zeros((slots, self._heads, self._size), self._dtype)
        self._gpu.download_rows(found, self.addresses[name] + row * self._row_bytes, rows * self._row_bytes)
        return found.transpose(1, 0, 2)

    def write(self, name: str, places: Iterable[int], rows: int, first: int, values: NDArray[Any]) -> None:
        turned = np.ascontiguousarray(values.transpose(1, 0, 2))
        for row in places:
            address = self.addresses[name] + (first * rows + row) * self._row_bytes
            self._gpu.upload_rows(address, rows * self._row_bytes, turned)
        self._gpu.synchronize()
