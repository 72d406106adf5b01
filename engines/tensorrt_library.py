"""TensorRT or TensorRT-RTX as a builder, with Polygraphy over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from arforge.runner.backends import tensorrt_library
from arforge.runner.backends.tensorrt_library import INSTALL, RTX, Library
from arforge.runner.errors import EngineError

SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


@lru_cache(maxsize=2)
def load_builder(target: str) -> Library:
    """Raises EngineError if the library or Polygraphy is missing or too old, or the other of the two is loaded."""
    library = tensorrt_library.load_library(target)
    os.environ[SWITCH] = str(int(target == RTX))  # read once, when Polygraphy is imported
    try:
        import polygraphy.config
        from polygraphy.backend.trt import util
    except ImportError:
        raise EngineError(f"polygraphy is not installed: {INSTALL[target]}") from None
    if bool(polygraphy.config.USE_TENSORRT_RTX) != (target == RTX):
        raise EngineError(f"this process has loaded the other TensorRT: build for {target} in a process of its own")
    util.TRT_LOGGER = library.recorder  # TensorRT takes one logger a process, and Polygraphy hands it this
    return library


@contextmanager
def quiet(what: str, library: Library) -> Iterator[None]:
    """Polygraphy without its log; its failures, and the library's, become one EngineError."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    recorder: Any = library.recorder
    recorder.clear()
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        try:
            yield
        except PolygraphyException as error:
            raise EngineError(f"{what}: {library.reason(str(error))}") from None
