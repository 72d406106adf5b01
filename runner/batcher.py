"""Decodes the requests of strangers together, on one thread of its own.

with Runner.open("fashion.bundle") as runner, Batcher(runner, batch=8) as batcher:
    future = batcher.submit(Request(classes=[7], seeds=[3], schedule="zipar:4"), timeout=30)
    result = future.result()
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.batch_jobs import Gone, Image, Job, each_preview, each_progress, part_of, parts_of
from arforge.runner.deadlines import Deadlines
from arforge.runner.errors import Cancelled, EngineError, QueueFull
from arforge.runner.preview import Preview
from arforge.runner.request import Progress, Request, check_images, number, whole
from arforge.runner.request_parts import images_of, joined, kind_of
from arforge.runner.runner import Result, Runner

MAX_WAITING = 2**20
MAX_TIMEOUT = 1e9


@dataclass(frozen=True)
class Batch:
    """What a batch was, for figures."""

    images: int
    waited: tuple[float, ...]  # seconds from `submit` to the start, of each image
    result: Result | None  # None if it was cancelled, or failed


_Coding = tuple[NDArray[np.uint8], Future[NDArray[np.int64]]]


class Batcher:
    """Takes requests from any thread and decodes what fits together when the engine is free, in order of arrival.

    Images of one schedule are decoded together, whatever their sampler settings; each is what it would be alone. It
    never waits for more to come. Use it as a context manager; the runner stays the caller's, and can be used beside.
    """

    def __init__(
        self, runner: Runner, batch: int = 8, waiting: int = 64, observe: Callable[[Batch], None] | None = None
    ) -> None:
        """`batch`: images decoded at a time; `waiting`: images that may wait; `observe` is called after each batch.

        Raises RequestError for a number below 1.
        """
        self._runner, self._observe = runner, observe
        self._batch = whole("batch", batch, 1, MAX_WAITING)
        self._most = whole("waiting", waiting, 1, MAX_WAITING)
        self._queue: deque[Image] = deque()
        self._codings: list[_Coding] = []
        self._changed = threading.Condition()
        self._closed = False
        self._deadlines = Deadlines()
        self._thread = threading.Thread(target=self._work, name="arforge-batcher", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Future[Result]:
        """The request's images, in time. `Future.cancel()` works until they are done, also while they are decoded.

        `timeout`: seconds from now after which the future has DeadlineExceeded. `progress` and `preview` as of
        `Runner.generate`, called on the batcher's thread; an image's steps count from the start of its batch.
        Raises QueueFull at once if the images do not fit beside those that wait, RequestError or ScheduleError for a
        request that does not fit the bundle, EngineError if the batcher is closed. What shows only later, such as a
        prompt that is too long, is the future's exception, and no other request's.
        """
        if timeout is not None:
            number("timeout", timeout, "use seconds above 0", lambda value: 0 < value <= MAX_TIMEOUT)
        requests = images_of(request, self._runner.bundle)
        if len(requests) > self._most:
            raise QueueFull(f"{len(requests)} images are more than the {self._most} that may wait: ask for fewer")
        now = time.monotonic()
        job = Job(Future(), len(requests), timeout, now, progress, preview)
        images = [Image(job, index, one, kind_of(one)) for index, one in enumerate(requests)]
        with self._changed:
            self._check_open()
            self._drop_gone()
            if len(self._queue) + len(images) > self._most:
                raise QueueFull(
                    f"{len(self._queue)} images are waiting and {self._most} may: try again when some are done"
                )
            self._queue.extend(images)
            self._changed.notify()
        if timeout is not None:
            self._deadlines.add(now + timeout, job.expire)
        return job.future

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one thread submits within the block can be one batch: the batcher sees all of it at once."""
        with self._changed:
            yield

    def encode(self, images: NDArray[np.uint8]) -> Future[NDArray[np.int64]]:
        """The tokens of images as `Runner.encode`, before the next batch is decoded.

        Raises QueueFull for more than may wait, RequestError for images that do not fit, EngineError if it is closed.
        """
        check_images(images, self._runner.bundle.image_tokenizer)
        with self._changed:
            self._check_open()
            if len(self._codings) >= self._most:
                raise QueueFull(f"{len(self._codings)} images wait to be encoded: try again when some are done")
            future: Future[NDArray[np.int64]] = Future()
            self._codings.append((images, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """Images that wait."""
        with self._changed:
            self._drop_gone()
            return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether it takes requests and its thread runs."""
        return not self._closed and self._thread.is_alive()

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and end: when all that were taken are answered, or cancel those that are not begun."""
        with self._changed:
            self._closed = True
            if not drain:
                for image in self._queue:
                    image.job.future.cancel()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._deadlines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the batcher is closed: make another one")

    def _drop_gone(self) -> None:
        if any(image.job.gone for image in self._queue):
            self._queue = deque(image for image in self._queue if not image.job.gone)

    def _work(self) -> None:
        while True:
            codings, images = self._take()
            if not codings and not images:
                return
            for pixels, future in codings:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(self._runner.encode(pixels))
                    except Exception as error:  # noqa: BLE001
                        future.set_exception(error)
            if images:
                self._decode(images)

    def _take(self) -> tuple[list[_Coding], list[Image]]:
        """What waits to be encoded, and the next batch; nothing when the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                self._drop_gone()
                if self._queue or self._codings or self._closed:
                    break
                self._changed.wait()
            kind = self._queue[0].kind if self._queue else None
            taken = [image for image in self._queue if image.kind == kind][: self._batch]
            chosen = set(map(id, taken))
            self._queue = deque(image for image in self._queue if id(image) not in chosen)
            codings = list(self._codings)
            self._codings.clear()
            return codings, taken

    def _decode(self, images: Sequence[Image]) -> None:
        """Decode and answer. Of images that fail together the halves are tried, until the one that fails is alone."""
        started = time.monotonic()
        result = None
        try:
            result = self._runner.generate(
                joined([image.request for image in images]),
                cancel=Gone(images),
                progress=each_progress(images),
                preview=each_preview(images),
            )
        except Cancelled:
            pass
        except Exception as error:  # noqa: BLE001  the thread outlives whatever a request does
            self._fail(images, error)
        else:
            for first, part, job in parts_of(images):
                job.deliver(first, part_of(result, part))
        if self._observe is not None:
            waited = tuple(started - image.job.submitted for image in images)
            with suppress(Exception):  # of whoever counts: the thread goes on
                self._observe(Batch(len(images), waited, result))

    def _fail(self, images: Sequence[Image], error: Exception) -> None:
        if len({id(image.job) for image in images}) == 1:
            images[0].job.fail(error)
            return
        middle = len(images) // 2
        for half in (images[:middle], images[middle:]):
            if left := [image for image in half if not image.job.gone]:
                self._decode(left)
