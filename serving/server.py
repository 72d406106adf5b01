"""Runs the service by uvicorn: in this process, or in several that it brings back when they die."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from arforge.serving.app import Open, make_app
from arforge.serving.limits import Limits
from arforge.serving.metrics import SEVERAL, Metrics
from arforge.serving.served import Models, Opening, check_bundles, opened

SETTINGS = "ARFORGE_SERVING"  # environment of worker processes
APP = "arforge.serving.server:worker_app"


@dataclass(frozen=True)
class Serving:
    """What `arforge serve` was asked to do."""

    bundles: tuple[str, ...]
    opening: Opening
    limits: Limits
    key: str | None = None

    @property
    def paths(self) -> list[Path]:
        return [Path(bundle) for bundle in self.bundles]

    def app(self, models: Open | None = None, metrics: Metrics | None = None) -> FastAPI:
        """`models`, `metrics`: in place of the service's own opening of its bundles."""
        opening = models or partial(opened, self.paths, self.opening, self.limits)
        return make_app(opening, self.limits, self.key, drain=True, metrics=metrics)

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
    """Serve until a signal says to stop. Each worker opens the bundles for itself; one that dies is started again.

    Raises what `opened` does, for several workers as far as it shows without loading an engine.
    """
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "timeout_graceful_shutdown": int(serving.limits.drain) + 1,
        "server_header": False,
    }
    if workers == 1:
        with ExitStack() as stack:
            metrics = Metrics()
            found = opened(serving.paths, serving.opening, serving.limits, metrics.observe)
            models = stack.enter_context(found)  # here, where an error is one line
            uvicorn.run(serving.app(lambda _: until_closed(models, stack), metrics), **settings)
        return
    check_bundles(serving.paths, serving.opening)
    os.environ[SETTINGS] = serving.to_json()
    with tempfile.TemporaryDirectory(prefix="arforge-metrics-") as counts:
        os.environ[SEVERAL] = counts
        uvicorn.run(APP, factory=True, workers=workers, **settings)


@contextmanager
def until_closed(models: Models, stack: ExitStack) -> Iterator[Models]:
    """Models that are open already and are closed with the block, as the process may end before anything after it."""
    with stack:
        yield models
