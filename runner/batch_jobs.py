"""The requests of a batcher as they proceed, and what they have of a batch that they share with others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from arforge.runner.errors import DeadlineExceeded
from arforge.runner.preview import Partial, Preview
from arforge.runner.request import Progress, Request
from arforge.runner.runner import Result


@dataclass(eq=False)
class Job:
    """A request. Its future stays pending, so that it can be cancelled, until there is an answer."""

    future: Future[Result]
    missing: int  # images
    timeout: float | None  # seconds
    submitted: float
    progress: Progress | None
    preview: Preview | None
    parts: list[tuple[int, Result]] = field(default_factory=list)  # first image, and the result of some from there on
    answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # an answer and a deadline may come at once

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more, or it has its answer."""
        return self.answered or self.future.done()

    def expire(self) -> None:
        """Its time is up."""
        self.fail(DeadlineExceeded(f"the images were not done after {self.timeout:g} s: ask for fewer, or wait longer"))

    def fail(self, error: BaseException) -> None:
        if self._claim():
            self.future.set_exception(error)

    def deliver(self, first: int, result: Result) -> None:
        """Take the images from `first` on; with the last of them there is an answer."""
        self.parts.append((first, result))
        self.missing -= len(result.tokens)
        if not self.missing and self._claim():
            self.future.set_result(_whole(self.parts))
            self.parts = []

    def call(self, hook: Callable[..., object], *arguments: object) -> None:
        """Call the request's own function; what it raises is the request's own failure."""
        if self.gone:
            return
        try:
            hook(*arguments)
        except Exception as error:  # noqa: BLE001
            self.fail(error)

    def _claim(self) -> bool:
        """Whether the caller is to answer; nobody else is then."""
        with self.lock:
            if self.gone:
                return False
            self.answered = True
            return self.future.set_running_or_notify_cancel()


@dataclass(frozen=True, eq=False)
class Image:
    job: Job
    index: int  # in its request
    request: Request
    kind: Hashable


class Gone:
    """Set when nobody waits for any of the images."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images

    def is_set(self) -> bool:
        return all(image.job.gone for image in self._images)


def parts_of(images: Sequence[Image]) -> list[tuple[int, slice, Job]]:
    """Of each request in a batch its first image there, its place, and the request; its images lie together."""
    found, place = [], 0
    for job, group in groupby(images, key=lambda image: image.job):
        own = list(group)
        found.append((own[0].index, slice(place, place + len(own)), job))
        place += len(own)
    return found


def each_progress(images: Sequence[Image]) -> Progress | None:
    if all(image.job.progress is None for image in images):
        return None
    jobs = {image.job for image in images}

    def progress(done: int, steps: int) -> None:
        for job in jobs:
            if job.progress is not None:
                job.call(job.progress, done, steps)

    return progress


def each_preview(images: Sequence[Image]) -> Preview | None:
    if all(image.job.preview is None for image in images):
        return None
    parts = parts_of(images)

    def preview(partial: Partial) -> None:
        for first, part, job in parts:  # of an engine that decodes fewer at a time, `partial` has some of them
            start = max(part.start, partial.first)
            stop = min(part.stop, partial.first + partial.count)
            if job.preview is not None and start < stop:
                own = slice(start - partial.first, stop - partial.first)
                job.call(job.preview, partial.part(own, first + start - part.start))

    return preview


def part_of(result: Result, images: slice) -> Result:
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
