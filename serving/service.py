"""What a service does with a request, whatever door it came through: admits it, has it decoded, answers."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from arforge.runner import Request, Result
from arforge.runner.errors import RequestError
from arforge.runner.image_file import image_size
from arforge.runner.inpainting import known_tokens
from arforge.runner.preview import Partial
from arforge.serving.errors import RETRY_AFTER, Refused
from arforge.serving.limits import Limits
from arforge.serving.metrics import Metrics
from arforge.serving.openai_api import Generation, parameters_of, request_of
from arforge.serving.pictures import encoded
from arforge.serving.served import Models, Served

HUNG_UP = 499  # as proxies log a client that went away
Gone = Callable[[], Awaitable[object]]
"""Returns when the client has hung up."""


@dataclass
class Service:
    limits: Limits
    metrics: Metrics
    models: Models = field(default_factory=dict)
    draining: bool = False  # it answers what it has, and takes nothing new
    running: int = 0  # requests without an answer yet
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while there are none

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self) -> None:
        self.running += 1
        self.idle.clear()
        self.metrics.running.inc()

    def end(self) -> None:
        self.running -= 1
        self.metrics.running.dec()
        if not self.running:
            self.idle.set()

    @property
    def ready(self) -> bool:
        return bool(self.models) and not self.draining and all(one.batcher.alive for one in self.models.values())

    def name_of(self, model: str | None) -> str:
        """That of the model that a request names, or of the only one; empty where there is none such."""
        if model is None and len(self.models) == 1:
            return next(iter(self.models))
        return model if model in self.models else ""

    def served(self, model: str | None) -> Served:
        """The model that a request names, or the only one. Raises Refused."""
        if self.draining:
            raise Refused(503, "the service is stopping: ask another one", "draining", RETRY_AFTER)
        name, known = self.name_of(model), ", ".join(self.models)
        if not name:
            message = f"name a model: {known}" if model is None else f"no model {model!r}: there is {known}"
            raise Refused(404, message, "model_not_found")
        return self.models[name]


@dataclass(frozen=True)
class Job:
    """A request that has been handed to a batcher."""

    asked: Generation
    request: Request
    served: Served
    future: Future[Result]
    submitted: float

    def file(self, pixels: NDArray[np.uint8], image: int, *, final: bool = True) -> bytes:
        """That image of the request as a file; the final one with what makes it again."""
        metadata = parameters_of(self.asked, self.request, self.served, image) if final else None
        return encoded(pixels, self.asked.output_format, self.asked.output_compression, metadata)

    def seed(self, image: int) -> int:
        assert self.request.seeds is not None
        return self.request.seeds[image]


Show = Callable[[Partial], None]


def submit(
    service: Service, asked: Generation, known: dict[str, Any] | None = None, preview: Show | None = None
) -> Job:
    """Hand a request to its model's batcher. Raises Refused, and what `Batcher.submit` does."""
    served = service.served(asked.model)
    request = request_of(asked, served, service.limits, known)
    seconds = min(asked.timeout or service.limits.seconds, service.limits.seconds)
    future = served.batcher.submit(request, timeout=seconds, preview=preview)
    return Job(asked, request, served, future, time.perf_counter())


async def finished(job: Job, gone: Gone) -> Result:
    """The job's result. Cancels it if the client hangs up meanwhile, or this is cancelled; raises Refused then."""
    waiting: asyncio.Future[Any] = asyncio.wrap_future(job.future)
    watching: asyncio.Future[Any] = asyncio.ensure_future(gone())
    try:
        await asyncio.wait([waiting, watching], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            result: Result = waiting.result()
            return result
        raise Refused(HUNG_UP, "the client has hung up", "client_closed_request")
    finally:
        watching.cancel()
        waiting.cancel()


async def answer(job: Job, result: Result) -> dict[str, Any]:
    """The body that OpenAI's API answers with; seed, schedule and times are arforge's own."""
    images = result.images
    assert images is not None
    files = await run_in_threadpool(lambda: [job.file(pixels, place) for place, pixels in enumerate(images)])
    return {
        **common(job, images),
        "data": [
            {"b64_json": base64.b64encode(file).decode(), "seed": job.seed(image)} for image, file in enumerate(files)
        ],
        "timings": {
            "total_seconds": time.perf_counter() - job.submitted,
            "condition_seconds": result.condition_seconds,
            "decode_seconds": result.seconds,
            "image_decode_seconds": result.image_seconds,
            "steps": result.steps,
        },
    }


def common(job: Job, images: NDArray[np.uint8]) -> dict[str, Any]:
    """What an answer and an event of a stream have alike."""
    return {
        "created": int(time.time()),
        "model": job.served.name,
        "schedule": job.request.schedule or job.served.bundle.default_schedule,
        "size": f"{images.shape[2]}x{images.shape[1]}",
        "output_format": job.asked.output_format,
        "background": "opaque",
        "quality": "auto",
    }


News = tuple[int, int, NDArray[np.uint8]]
"""Partial images: the first one's place in the request, how many have been shown with these, and their pixels."""


class Stream:
    """The events of a request: partial images as they come to be, then the final ones, or what went wrong."""

    def __init__(self, asked: Generation, event: str) -> None:
        """To be made where an event loop runs. `event`: image_generation or image_edit."""
        self._asked, self._event = asked, event
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News | None] = asyncio.Queue()
        self._shown: dict[int, int] = {}  # partial images so far, by the first image that they show

    def preview(self, partial: Partial) -> None:
        """Called on the batcher's thread after every step."""
        parts = self._asked.partial_images + 1
        due = min(parts * partial.done // partial.steps, self._asked.partial_images)
        if due > self._shown.get(partial.first, 0) and partial.done < partial.steps:
            self._shown[partial.first] = due
            self._tell((partial.first, due, partial.pixels(self._asked.undecided)))

    async def events(self, job: Job) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Names and contents. Raises what the job's future does; cancels the job if it is left early."""
        job.future.add_done_callback(lambda _: self._tell(None))
        try:
            while (news := await self._news.get()) is not None:
                first, shown, images = news
                for place, pixels in enumerate(images):
                    file = await run_in_threadpool(job.file, pixels, first + place, final=False)
                    index = {"partial_image_index": shown - 1}
                    yield self._one("partial_image", job, images, file, first + place, index)
            final = job.future.result().images
            assert final is not None
            for place, pixels in enumerate(final):
                file = await run_in_threadpool(job.file, pixels, place)
                yield self._one("completed", job, final, file, place, {"seed": job.seed(place)})
        finally:
            job.future.cancel()

    def _tell(self, news: News | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    def _one(
        self, kind: str, job: Job, images: NDArray[np.uint8], file: bytes, image: int, more: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        name, facts = f"{self._event}.{kind}", common(job, images)
        facts["created_at"] = facts.pop("created")
        return name, {
            "type": name,
            **facts,
            "image_index": image,
            **more,
            "b64_json": base64.b64encode(file).decode(),
        }


def kept_tokens(service: Service, asked: Generation, image: bytes, mask: bytes | None) -> dict[str, Any]:
    """The `known` of a request that keeps a part of an image. Raises RequestError for files that do not fit.

    Waits for the image to be encoded: not for an event loop.
    """
    served = service.served(asked.model)
    if not served.edits:
        raise RequestError(f"model {served.name} cannot keep a part of an image: it takes one of random order")
    height, width = image_size(image)
    if height * width > service.limits.pixels:
        raise RequestError(f"the image has more than {service.limits.pixels} pixels, which is this service's limit")
    size = f"{width}x{height}"
    if asked.size not in ("auto", size):
        raise RequestError(f"size {asked.size}: the image is {size}, and so is what comes out: leave size out")

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return served.batcher.encode(pixels).result(service.limits.seconds)

    grid = served.grid_of(size, service.limits)
    return {"known": known_tokens(served.runner, image, mask, grid, clear_paints=True, encode=encode)}
