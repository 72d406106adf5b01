"""What a service lets strangers ask for. A bundle's path, a file or an address is never among it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    batch: int = 8  # images decoded at a time
    waiting: int = 64  # images that may wait
    images: int = 10  # of one request
    body: int = 16 << 20  # bytes
    prompt: int = 4000  # characters
    pixels: int = 4 << 20  # of an image, in or out
    seconds: float = 300.0  # from a request to its answer
    partial_images: int = 8  # of one image
    drain: float = 60.0  # seconds that running requests have once the service is told to stop
