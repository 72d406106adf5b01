"""The HTTP service: OpenAI's images API over bundles, health, metrics and a page to try it on."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from arforge.serving.body_limit import BodyLimit
from arforge.serving.drain import draining_first
from arforge.serving.errors import Refused, body_of, response_of, status_of
from arforge.serving.limits import Limits
from arforge.serving.metrics import Metrics
from arforge.serving.openai_api import Generation
from arforge.serving.pictures import TYPES, Format
from arforge.serving.served import Models, Observe
from arforge.serving.service import Service, Stream, answer, finished, kept_tokens, submit
from arforge.version import VERSION

MAX_FIELDS = 40  # of a form
log = logging.getLogger("arforge.serving")

Open = Callable[[Observe], AbstractContextManager[Models]]
"""Opens the models of a service, for as long as it runs."""


def make_app(
    open_models: Open,
    limits: Limits | None = None,
    key: str | None = None,
    *,
    drain: bool = False,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The service as an ASGI app; `app.state.service` is its `Service`.

    `key`: what clients of /v1 must bring. `drain`: whether SIGTERM lets running requests be answered first.
    """
    service = Service(limits or Limits(), metrics or Metrics())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = open_models(service.metrics.observe)
        service.models = await run_in_threadpool(opening.__enter__)
        try:
            with draining_first(service) if drain else nullcontext():
                yield
        finally:
            service.draining = True
            await run_in_threadpool(opening.__exit__, None, None, None)

    app = FastAPI(title="arforge", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(BodyLimit, most=service.limits.body)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    checked = [Depends(_key_check(key))] if key else []

    @app.post("/v1/images/generations", dependencies=checked)
    async def generations(asked: Generation, http: Request) -> Response:
        return await _images(service, http, asked, "image_generation")

    @app.post("/v1/images/edits", dependencies=checked)
    async def edits(http: Request) -> Response:
        async with http.form(max_files=2, max_fields=MAX_FIELDS) as form:
            asked, image, mask = _edit_of(form)
            kept = [None if file is None else await file.read() for file in (image, mask)]
        return await _images(service, http, asked, "image_edit", kept)

    @app.get("/v1/models", dependencies=checked)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name) for name in service.models]}

    @app.get("/v1/models/{name}", dependencies=checked)
    async def model(name: str) -> dict[str, Any]:
        return _model(service, service.served(name).name)

    @app.get("/health/live")
    async def live() -> Response:
        alive = all(served.batcher.alive for served in service.models.values()) or service.draining
        return PlainTextResponse("live" if alive else "a batcher has died", 200 if alive else 503)

    @app.get("/health/ready")
    async def ready() -> Response:
        return PlainTextResponse("ready" if service.ready else "not ready", 200 if service.ready else 503)

    @app.get("/metrics")
    async def counts() -> Response:
        return Response(service.metrics.page(service.models), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(files("arforge.serving").joinpath("page.html").read_text("utf-8"))

    return app


async def _images(
    service: Service, http: Request, asked: Generation, event: str, kept: list[bytes | None] | None = None
) -> Response:
    """The answer of /v1/images, whatever happens."""
    model = service.name_of(asked.model)
    start = time.perf_counter()
    service.begin()

    def ended(status: int) -> None:
        service.end()
        service.metrics.requests.labels(model, event, status).inc()
        service.metrics.request_seconds.labels(model).observe(time.perf_counter() - start)

    try:
        known = None
        if kept is not None:
            image, mask = kept
            assert image is not None
            known = await run_in_threadpool(kept_tokens, service, asked, image, mask)
        if asked.stream:
            stream = Stream(asked, event)
            job = submit(service, asked, known, stream.preview if asked.partial_images else None)
            lines = _lines(stream.events(job), ended)
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        raw = _raw_format(http, asked)
        job = submit(service, asked if raw is None else asked.model_copy(update={"output_format": raw}), known)
        result = await finished(job, lambda: _gone(http))
        if raw is None:
            response: Response = JSONResponse(await answer(job, result))
        else:
            assert result.images is not None
            file = await run_in_threadpool(job.file, result.images[0], 0)
            response = Response(file, media_type=TYPES[raw], headers={"X-Seed": str(job.seed(0))})
    except Exception as error:  # noqa: BLE001  each request has an answer
        _note(error)
        ended(status_of(error))
        return response_of(error)
    except BaseException:  # the server gives the request up
        ended(499)
        raise
    ended(200)
    return response


async def _lines(events: AsyncIterator[tuple[str, dict[str, Any]]], ended: Callable[[int], None]) -> AsyncIterator[str]:
    """Server-sent events; an error is the last one."""
    status = 499
    try:
        async for name, content in events:
            yield f"event: {name}\ndata: {json.dumps(content)}\n\n"
        status = 200
    except Exception as error:  # noqa: BLE001
        _note(error)
        status = status_of(error)
        yield f"event: error\ndata: {json.dumps({'type': 'error', **body_of(error)})}\n\n"
    finally:
        ended(status)


def _raw_format(http: Request, asked: Generation) -> Format | None:
    """The format of the one image that the client wants in place of JSON, by its Accept header."""
    accepted = [part.partition(";")[0].strip() for part in http.headers.get("accept", "").split(",")]
    named = [kind for kind, media in TYPES.items() if media in accepted]
    return named[0] if named and asked.n == 1 else None


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _edit_of(form: FormData) -> tuple[Generation, UploadFile, UploadFile | None]:
    """A form's fields as a request, its image and its mask. Raises RequestValidationError, Refused."""
    files = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
    fields = {name: value for name, value in form.multi_items() if name not in files}
    image, mask = files.pop("image", None) or files.pop("image[]", None), files.pop("mask", None)
    if image is None or files:
        raise Refused(400, "send one file as image, and if need be one as mask", "bad_form")
    try:
        return Generation.model_validate(fields), image, mask
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "arforge", "arforge": service.models[name].facts()}


def _key_check(key: str) -> Callable[[Request], Awaitable[None]]:
    async def check(http: Request) -> None:
        given = http.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "this service takes an API key: Authorization: Bearer KEY", "invalid_api_key", headers)

    return check


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # of the server's own: no such path, a form that is none
        error = Refused(error.status_code, error.detail, "http_error", error.headers)
    return response_of(error)


def _note(error: Exception) -> None:
    if status_of(error) == 500:
        log.error("a request failed", exc_info=error)
