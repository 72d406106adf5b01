"""Several requests decoded together, each with the answers that are its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from arforge.runner.batcher import Batcher
from arforge.runner.errors import Cancelled
from arforge.runner.preview import Partial, Preview, every
from arforge.runner.runner import Result
from arforge.serving.triton.inputs import Call

ASK_EVERY = 0.05  # seconds; asking Triton whether a client has cancelled takes up to a millisecond


@dataclass(frozen=True)
class Images:
    """Some images of a request, complete or not."""

    tokens: NDArray[np.int64]  # (images, cells), -1 in cells that are not decided
    pixels: NDArray[np.uint8] | None
    first: int = 0  # their place in the request
    done: int = 0
    steps: int = 0

    def arrays(self, *, stream: bool) -> dict[str, NDArray[np.uint8] | NDArray[np.int64]]:
        """As outputs of a model, by name."""
        found: dict[str, NDArray[np.uint8] | NDArray[np.int64]] = {}
        if self.pixels is not None:
            found["image"] = np.require(self.pixels, requirements=["C", "W"])
        found["tokens"] = np.require(self.tokens, requirements=["C", "W"])
        if stream:
            count = len(self.tokens)
            found["index"] = np.arange(self.first, self.first + count, dtype=np.int64)[:, None]
            found["done"] = np.full((count, 1), self.done, np.int64)
            found["steps"] = np.full((count, 1), self.steps, np.int64)
        return found


@dataclass(frozen=True)
class Answer:
    of: int  # which request
    what: Images | BaseException
    last: bool = True


def answers(batcher: Batcher, calls: Sequence[Call], gone: Sequence[Callable[[], bool]]) -> Iterator[Answer]:
    """Decode the calls of strangers together, and yield their answers as they come, on the thread that asks.

    `gone`: of each call, whether its client has cancelled it; asked on this thread, now and then.
    """
    arrived: SimpleQueue[Answer] = SimpleQueue()
    pending = _submitted(batcher, calls, arrived)
    asked = time.monotonic()
    try:
        while pending:
            with suppress(Empty):
                answer = arrived.get(timeout=ASK_EVERY)
                if answer.of in pending:  # else it was cancelled, and its preview comes late
                    yield answer
                if answer.last:
                    pending.pop(answer.of, None)
            if time.monotonic() - asked >= ASK_EVERY:
                for future in [future for index, future in pending.items() if gone[index]()]:
                    future.cancel()
                asked = time.monotonic()
    finally:
        for future in pending.values():
            future.cancel()


def _submitted(batcher: Batcher, calls: Sequence[Call], arrived: SimpleQueue[Answer]) -> dict[int, Future[Result]]:
    pending: dict[int, Future[Result]] = {}
    with batcher.together():
        for index, call in enumerate(calls):
            try:
                pending[index] = batcher.submit(call.request, preview=_shown(arrived, index, call))
            except Exception as error:  # noqa: BLE001  of one request, which is its answer
                pending[index] = Future()
                pending[index].set_exception(error)
    for index, future in pending.items():
        future.add_done_callback(partial(_done, arrived, index))
    return pending


def _done(arrived: SimpleQueue[Answer], index: int, future: Future[Result]) -> None:
    try:
        result = future.result()
    except CancelledError:
        arrived.put(Answer(index, Cancelled("the client has cancelled the request")))
    except Exception as error:  # noqa: BLE001
        arrived.put(Answer(index, error))
    else:
        arrived.put(Answer(index, Images(result.tokens, result.images, 0, result.steps, result.steps)))


def _shown(arrived: SimpleQueue[Answer], index: int, call: Call) -> Preview | None:
    if not call.previews:
        return None

    def show(seen: Partial) -> None:
        pixels = None if seen.codec is None else seen.pixels(call.undecided)
        arrived.put(Answer(index, Images(seen.tokens(), pixels, seen.first, seen.done, seen.steps), last=False))

    return every(call.previews, show)
