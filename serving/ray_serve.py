"""The HTTP service as a Ray Serve application: replicas on any number of machines, as many as the load asks for.

serve run arforge.serving.ray_serve:application bundles=fashion.bundle max_replicas=8

Each replica has its own engines and batchers (`runner/batcher.py`): Ray's `@serve.batch` would wait for more requests
to come, and knows nothing of schedules, of previews, or of clients that hang up.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from arforge.runner.errors import EngineError
from arforge.runner.optional import needed
from arforge.serving.app import make_app
from arforge.serving.key_file import read_key
from arforge.serving.limits import Limits
from arforge.serving.served import Opening, opened

with needed("serving on Ray", "ray", EngineError):
    from ray import serve

HEALTH_SECONDS = 5.0  # between questions whether a replica is well


class Settings(BaseModel):
    """What the application is built from: words of the command line, or `args` of a Serve configuration file."""

    model_config = ConfigDict(extra="forbid")

    bundles: list[str] | str  # paths, with commas in one text; on every machine that has a replica
    target: str = "onnxruntime"
    precision: str | None = None
    threads: int = Field(1, ge=1)  # CPU threads of a replica, which Ray reserves
    gpus: float = Field(0, ge=0)  # of a replica
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    batch: int = Field(Limits.batch, ge=1)  # images decoded at a time
    waiting: int = Field(Limits.waiting, ge=1)  # images that may wait in a replica
    seconds: float = Field(Limits.seconds, gt=0)  # from a request to its answer
    key_file: str | None = None  # what clients must bring

    @property
    def paths(self) -> list[Path]:
        names = self.bundles.split(",") if isinstance(self.bundles, str) else self.bundles
        return [Path(name).absolute() for name in names]

    @property
    def limits(self) -> Limits:
        return Limits(batch=self.batch, waiting=self.waiting, seconds=self.seconds)


class Replica:
    """One process of the service."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        opening = Opening(settings.target, settings.precision, settings.threads)
        open_models = partial(opened, settings.paths, opening, settings.limits)
        self._service_app = make_app(open_models, settings.limits, key)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Asked for by Ray when the replica starts, which then opens the models."""
        return self._service_app

    def check_health(self) -> None:
        """Asked by Ray now and then; it replaces a replica for which this raises."""
        models = self._service_app.state.service.models
        if not all(served.batcher.alive for served in models.values()):
            raise EngineError("a batcher has died")


def application(settings: Settings) -> Any:
    """The application, to be run by `serve run` or `serve.run`. Raises RequestError for a key file that holds none."""
    key = None if settings.key_file is None else read_key(Path(settings.key_file))
    deployment = serve.deployment(
        name="arforge",
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.batch,  # a replica is full when its batch is
        },
        # what is more waits at Ray's proxy for the replica that is free first
        max_ongoing_requests=settings.batch + settings.waiting,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.limits.drain,
    )
    return deployment(serve.ingress()(Replica)).bind(settings, key)
