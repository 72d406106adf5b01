"""An engine that is busy for as long as a test wants, so that what it asks meanwhile waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from arforge.runner import Request, Result
from arforge.runner.batcher import Batcher

WAIT = 60


@contextmanager
def held(batcher: Batcher, request: Request | None = None, **arguments: Any) -> Iterator[Future[Result]]:
    """The engine is busy with this request until the block ends, so that what is submitted there waits."""
    begun, go_on = threading.Event(), threading.Event()

    def progress(*_: int) -> None:
        begun.set()
        go_on.wait(WAIT)

    future = batcher.submit(request or Request([0], schedule="zipar:2"), progress=progress, **arguments)
    assert begun.wait(WAIT)
    try:
        yield future
    finally:
        go_on.set()
