"""Decodes the requests of strangers together, on one thread of its own.

with Runner.open("fashion.bundle") as runner, Batcher(runner, batch=8) as batcher:
    future = batcher.submit(Request(classes=[7], seeds=[3], schedule="zipar:4"), timeout=30)
    result = future.result()
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import Cancelled, DeadlineExceeded, EngineError, QueueFull
from arforge.runner.preview import Partial, Preview
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


@dataclass(eq=False)
class _Job:
    """A request as it proceeds. Its future stays pending, so that it can be cancelled, until there is an answer."""

    future: Future[Result]
    missing: int  # images
    deadline: float | None
    submitted: float
    progress: Progress | None
    preview: Preview | None
    parts: list[tuple[int, Result]] = field(default_factory=list)  # first image, and the result of some from there on

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more, or it has its answer."""
        return self.future.done()

    def expire(self, now: float) -> None:
        if self.deadline is not None and now >= self.deadline:
            waited = self.deadline - self.submitted
            self.fail(DeadlineExceeded(f"the images were not done after {waited:g} s: ask for fewer, or wait longer"))

    def fail(self, error: BaseException) -> None:
        if not self.gone and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def call(self, hook: Callable[..., object], *arguments: object) -> None:
        """Call the request's own function; what it raises is the request's own failure."""
        if self.gone:
            return
        try:
            hook(*arguments)
        except Exception as error:  # noqa: BLE001
            self.fail(error)

    def deliver(self, first: int, result: Result) -> None:
        self.parts.append((first, result))
        self.missing -= len(result.tokens)
        if not self.missing and not self.gone and self.future.set_running_or_notify_cancel():
            self.future.set_result(_whole(self.parts))
            self.parts = []


@dataclass(frozen=True, eq=False)
class _Image:
    job: _Job
    index: int  # in its request
    request: Request
    kind: Hashable


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
        self._queue: deque[_Image] = deque()
        self._codings: list[_Coding] = []
        self._changed = threading.Condition()
        self._closed = False
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
        deadline = None if timeout is None else now + timeout
        job = _Job(Future(), len(requests), deadline, now, progress, preview)
        images = [_Image(job, index, one, kind_of(one)) for index, one in enumerate(requests)]
        with self._changed:
            self._check_open()
            self._drop_gone()
            if len(self._queue) + len(images) > self._most:
                raise QueueFull(
                    f"{len(self._queue)} images are waiting and {self._most} may: try again when some are done"
                )
            self._queue.extend(images)
            self._changed.notify()
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

    def _take(self) -> tuple[list[_Coding], list[_Image]]:
        """What waits to be encoded, and the next batch; nothing when the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                self._expire(self._queue)
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

    def _decode(self, images: Sequence[_Image]) -> None:
        """Decode and answer. Of images that fail together the halves are tried, until the one that fails is alone."""
        started = time.monotonic()
        result = None
        try:
            result = self._runner.generate(
                joined([image.request for image in images]),
                cancel=_Gone(images, self._sweep),
                progress=_each_progress(images),
                preview=_each_preview(images),
            )
        except Cancelled:
            pass
        except Exception as error:  # noqa: BLE001  the thread outlives whatever a request does
            self._fail(images, error)
        else:
            for first, part, job in _parts(images):
                job.deliver(first, _part(result, part))
        if self._observe is not None:
            waited = tuple(started - image.job.submitted for image in images)
            self._observe(Batch(len(images), waited, result))

    def _fail(self, images: Sequence[_Image], error: Exception) -> None:
        if len({id(image.job) for image in images}) == 1:
            images[0].job.fail(error)
            return
        middle = len(images) // 2
        for half in (images[:middle], images[middle:]):
            if left := [image for image in half if not image.job.gone]:
                self._decode(left)

    def _sweep(self, images: Iterable[_Image]) -> None:
        """Answer what is past its deadline, of these and of those that wait."""
        self._expire(images)
        with self._changed:
            self._expire(self._queue)

    def _expire(self, images: Iterable[_Image]) -> None:
        now = time.monotonic()
        for job in {image.job for image in images}:
            job.expire(now)


class _Gone:
    """Set when nobody waits for any of the images; asked before every step, it answers those past their deadline."""

    def __init__(self, images: Sequence[_Image], sweep: Callable[[Iterable[_Image]], None]) -> None:
        self._images, self._sweep = images, sweep

    def is_set(self) -> bool:
        self._sweep(self._images)
        return all(image.job.gone for image in self._images)


def _parts(images: Sequence[_Image]) -> list[tuple[int, slice, _Job]]:
    """Of each request in a batch its first image there, its place, and the request; its images lie together."""
    found, place = [], 0
    for job, group in groupby(images, key=lambda image: image.job):
        own = list(group)
        found.append((own[0].index, slice(place, place + len(own)), job))
        place += len(own)
    return found


def _each_progress(images: Sequence[_Image]) -> Progress | None:
    if all(image.job.progress is None for image in images):
        return None
    jobs = {image.job for image in images}

    def progress(done: int, steps: int) -> None:
        for job in jobs:
            if job.progress is not None:
                job.call(job.progress, done, steps)

    return progress


def _each_preview(images: Sequence[_Image]) -> Preview | None:
    if all(image.job.preview is None for image in images):
        return None
    parts = _parts(images)

    def preview(partial: Partial) -> None:
        for first, part, job in parts:  # of an engine that decodes fewer at a time, `partial` has some of them
            start = max(part.start, partial.first)
            stop = min(part.stop, partial.first + partial.count)
            if job.preview is not None and start < stop:
                own = slice(start - partial.first, stop - partial.first)
                job.call(job.preview, partial.part(own, first + start - part.start))

    return preview


def _part(result: Result, images: slice) -> Result:
    passes = result.passes[images]
    pixels = None if result.images is None else result.images[images]
    return replace(result, tokens=result.tokens[images], images=pixels, passes=passes, steps=int(passes.max()))


def _whole(parts: list[tuple[int, Result]]) -> Result:
    """The result of a request from those of its images, decoded in one batch or in several."""
    results = [result for _, result in sorted(parts, key=lambda part: part[0])]
    if len(results) == 1:
        return results[0]
    pixels = [result.images for result in results if result.images is not None]
    return replace(
        results[0],
        tokens=np.concatenate([result.tokens for result in results]),
        images=np.concatenate(pixels) if pixels else None,
        steps=max(result.steps for result in results),
        passes=np.concatenate([result.passes for result in results]),
        seconds=sum(result.seconds for result in results),
        image_seconds=sum(result.image_seconds for result in results),
        condition_seconds=sum(result.condition_seconds for result in results),
    )
