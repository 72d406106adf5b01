"""Runs the service by uvicorn: in this process, or in several that it brings back when they die."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from arforge.serving.app import make_app
from arforge.serving.limits import Limits
from arforge.serving.metrics import SEVERAL
from arforge.serving.served import Opening, opened

SETTINGS = "ARFORGE_SERVING"  # environment of worker processes
APP = "arforge.serving.server:worker_app"


@dataclass(frozen=True)
class Serving:
    """What `arforge serve` was asked to do."""

    bundles: tuple[str, ...]
    opening: Opening
    limits: Limits
    key: str | None = None

    def app(self) -> FastAPI:
        open_models = partial(opened, [Path(path) for path in self.bundles], self.opening, self.limits)
        return make_app(open_models, self.limits, self.key, drain=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Serving:
        facts = json.loads(text)
        opening, limits = Opening(**facts["opening"]), Limits(**facts["limits"])
        return cls(tuple(facts["bundles"]), opening, limits, facts["key"])


def worker_app() -> FastAPI:
    """The app of a worker process."""
    return Serving.of_json(os.environ[SETTINGS]).app()


def run(serving: Serving, host: str, port: int, workers: int = 1) -> None:
    """Serve until a signal says to stop. Each worker opens the bundles for itself; one that dies is started again."""
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "timeout_graceful_shutdown": int(serving.limits.drain) + 1,
        "server_header": False,
    }
    if workers == 1:
        uvicorn.run(serving.app(), **settings)
        return
    os.environ[SETTINGS] = serving.to_json()
    with tempfile.TemporaryDirectory(prefix="arforge-metrics-") as counts:
        os.environ[SEVERAL] = counts
        uvicorn.run(APP, factory=True, workers=workers, **settings)
