"""Stopping in two steps: first nothing new is taken and what has been begun is answered, then the server ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from arforge.serving.service import Service


@contextmanager
def draining_first(service: Service, sig: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """In a running event loop of the main thread: the signal's own handler is called once all requests are answered.

    At the latest after `Limits.drain` seconds, or when the signal comes again. Elsewhere than in the main thread it
    does nothing, as there are no signals.
    """
    before = signal.getsignal(sig)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    stop, loop = before, asyncio.get_running_loop()

    async def drain(frame: FrameType | None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(service.idle.wait(), service.limits.drain)
        stop(sig, frame)

    tasks: list[asyncio.Task[Any]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if service.draining:
            stop(number, frame)
            return
        service.draining = True
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(drain(frame))))

    signal.signal(sig, handle)
    try:
        yield
    finally:
        signal.signal(sig, before)
