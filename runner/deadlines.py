"""Calls what is due when it is due, on a thread of its own that starts with the first deadline."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count
from weakref import WeakMethod

Due = tuple[float, int, "WeakMethod[Callable[[], object]]"]


class Deadlines:
    def __init__(self) -> None:
        self._due: list[Due] = []
        self._order = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, when: float, call: Callable[[], object]) -> None:
        """Call a method at that time of `time.monotonic`, if its object is still there then."""
        with self._changed:
            heapq.heappush(self._due, (when, next(self._order), WeakMethod(call)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="arforge-deadlines", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """What is not due yet is not called any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (due := self._next()) is not None:
            if (call := due()) is not None:
                call()

    def _next(self) -> WeakMethod[Callable[[], object]] | None:
        """What is due, once it is; None when closed."""
        with self._changed:
            while not self._closed:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left)
            return None
