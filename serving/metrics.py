"""What a service counts, as Prometheus reads it."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from arforge.runner.batcher import Batch
from arforge.serving.served import Models

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SEVERAL = "PROMETHEUS_MULTIPROC_DIR"  # where several worker processes put their counts


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "arforge_requests", "Requests answered", ["model", "endpoint", "status"], registry=registry
        )
        self.images = Counter("arforge_images", "Images drawn", ["model"], registry=registry)
        self.request_seconds = Histogram(
            "arforge_request_seconds", "From request to answer", ["model"], buckets=SECONDS, registry=registry
        )
        self.waited = Histogram(
            "arforge_queue_seconds", "That an image waited for its batch", ["model"], buckets=SECONDS, registry=registry
        )
        self.batch_images = Histogram(
            "arforge_batch_images", "Images decoded together", ["model"], buckets=SIZES, registry=registry
        )
        self.parts = {
            name: Histogram(f"arforge_{name}_seconds", text, ["model"], buckets=SECONDS, registry=registry)
            for name, text in (
                ("condition", "Of a batch: prompts to filled caches"),
                ("decode", "Of a batch: decoding of tokens"),
                ("image_decode", "Of a batch: tokens to pixels"),
            )
        }
        self.running = Gauge(
            "arforge_requests_running", "Requests without an answer yet", registry=registry, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "arforge_images_waiting", "Images in the queue", ["model"], registry=registry, multiprocess_mode="livesum"
        )

    def observe(self, model: str, batch: Batch) -> None:
        """After each batch."""
        self.batch_images.labels(model).observe(batch.images)
        for seconds in batch.waited:
            self.waited.labels(model).observe(seconds)
        if batch.result is not None:
            self.images.labels(model).inc(batch.images)
            self.parts["condition"].labels(model).observe(batch.result.condition_seconds)
            self.parts["decode"].labels(model).observe(batch.result.seconds)
            self.parts["image_decode"].labels(model).observe(batch.result.image_seconds)

    def page(self, models: Models) -> bytes:
        """The text that Prometheus reads; of all worker processes where there are several."""
        for name, served in models.items():
            self.waiting.labels(name).set(served.batcher.waiting)
        if SEVERAL not in os.environ:
            return generate_latest(self._registry)
        every = CollectorRegistry()
        multiprocess.MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)
