"""Counts what an engine asks of its GPU: launches of CUDA graphs, waits of the host, bytes to and from the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Moved:
    """Bytes between host and device."""

    sent: int = 0
    fetched: int = 0

    def add(self, other: Moved) -> None:
        self.sent += other.sent
        self.fetched += other.fetched


class Counts:
    """From now on, of an engine with a GPU of its own; all stay 0 of others. A launched graph has its copies again."""

    def __init__(self, engine: Any) -> None:
        self.launches = self.waits = 0
        self.moved = Moved()
        self._captured: Moved | None = None  # of the graph that is captured now
        self._graphs: dict[int, Moved] = {}
        gpu = getattr(engine, "gpu", None)
        if gpu is not None:
            self._watch(gpu)

    def taken(self) -> dict[str, int]:
        """What was counted since the last call, by the names of the figures."""
        found = {
            "launches": self.launches,
            "waits": self.waits,
            "bytes_to_the_device": self.moved.sent,
            "bytes_to_the_host": self.moved.fetched,
        }
        self.launches = self.waits = 0
        self.moved = Moved()
        return found

    def _watch(self, gpu: Any) -> None:
        launch, synchronize, capturing = gpu.launch, gpu.synchronize, gpu.capturing
        up, down, up_rows, down_rows = gpu.upload, gpu.download, gpu.upload_rows, gpu.download_rows
        inside = False  # of a copy row by row, which may be several copies

        def launched(graph: Any) -> None:
            self.launches += 1
            self.moved.add(self._graphs.get(id(graph), Moved()))
            launch(graph)

        def waited() -> None:
            self.waits += 1
            synchronize()

        @contextmanager
        def captured() -> Iterator[Any]:
            own = self._captured = Moved()
            try:
                with capturing() as graphs:
                    yield graphs
            finally:
                self._captured = None
            self._graphs[id(graphs[0])] = own

        def counted(copy: Any, of: int, *, sent: bool) -> Any:
            def do(*arguments: Any) -> None:
                nonlocal inside
                if not inside:
                    size = arguments[of].nbytes
                    now = self.moved if self._captured is None else self._captured
                    now.add(Moved(size, 0) if sent else Moved(0, size))
                before, inside = inside, True
                try:
                    copy(*arguments)
                finally:
                    inside = before

            return do

        gpu.launch, gpu.synchronize, gpu.capturing = launched, waited, captured
        gpu.upload, gpu.upload_rows = counted(up, 1, sent=True), counted(up_rows, 2, sent=True)
        gpu.download, gpu.download_rows = counted(down, 0, sent=False), counted(down_rows, 0, sent=False)
