"""A service on a port of its own, in this process, and what its tests ask of it."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from held_engine import WAIT, held
from numpy.typing import NDArray
from PIL import Image

from arforge.runner import Request
from arforge.serving.app import make_app
from arforge.serving.limits import Limits
from arforge.serving.served import Opening, Served, opened
from arforge.serving.service import Service


def pixels_of(file: bytes | str) -> NDArray[np.uint8]:
    """Of an image file, or of one in base64."""
    data = base64.b64decode(file) if isinstance(file, str) else file
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Running:
    url: str
    service: Service

    def post(self, path: str = "generations", **arguments: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/images/{path}", timeout=WAIT, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=WAIT, **arguments)

    def served(self, name: str) -> Served:
        return self.service.models[name]

    @contextmanager
    def held(self, name: str, **asked: Any) -> Iterator[None]:
        """That model's engine is busy until the block ends."""
        with held(self.served(name).batcher, Request([0], **asked)) as future:
            yield
        future.result(WAIT)


@contextmanager
def running(bundles: list[Path], limits: Limits, key: str | None = None) -> Iterator[Running]:
    app = make_app(partial(opened, bundles, Opening(threads=1), limits), limits, key)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service)
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


def counted(service: Running, name: str) -> float:
    """The sum of the metrics whose lines begin so."""
    lines = service.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
