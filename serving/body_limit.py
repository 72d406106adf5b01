"""Refuses bodies that are larger than a service takes, before they are read."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arforge.serving.errors import Refused, response_of


class BodyLimit:
    """ASGI middleware: 413 for a body that says it is larger than `most` bytes, or turns out to be."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = Refused(413, f"the body has more than {self._most} bytes, which is this service's limit", "too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await response_of(refused)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise refused
            return message

        async def checked(message: Message) -> None:
            if read <= self._most:
                await send(message)
            elif message["type"] == "http.response.start":  # whatever the app made of it
                await response_of(refused)(scope, receive, send)

        await self._app(scope, counted, checked)
