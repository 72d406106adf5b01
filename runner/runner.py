"""The runner: a loop that executes a schedule against an engine.

with Runner.open("llamagen-l.bundle") as runner:
    result = runner.generate(classes=[207, 360], seeds=[0, 1], schedule="zipar:16", guidance=2.0)
"""

from __future__ import annotations

import math
import operator
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.engine import Engine
from arforge.runner.errors import Cancelled, EngineError, RequestError
from arforge.runner.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.plan import Plan, make_plan
from arforge.runner.randomness import uniforms

ENGINES = {"onnxruntime": OnnxRuntimeEngine.built}
DEFAULT_BATCH = 32
MAX_SEED = 2**64 - 1
MAX_SCALE = 1000  # of guidance and temperature
MAX_TOP_K = 2**30

Progress = Callable[[int, int], None]
"""Called after every step with the steps done and the steps of the whole request."""


class CancelFlag(Protocol):
    """Anything like threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Request:
    """The sampling side of a generation. Raises RequestError for a value out of range."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance) and 1 <= self.guidance <= MAX_SCALE):
            raise RequestError(f"guidance {self.guidance} is out of range: use 1 (off) to {MAX_SCALE}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_SCALE):
            raise RequestError(f"temperature {self.temperature} is out of range: use 0 (greedy) to {MAX_SCALE}")
        whole("top-k", self.top_k, 0, MAX_TOP_K)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top-p {self.top_p} is out of range: use a number in (0, 1]; 1 is off")


def whole(what: str, value: Any, least: int, most: int) -> int:
    """`value` as an int. Raises RequestError unless it is a whole number in that range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r} is not a whole number: use {least} to {most}") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise RequestError(f"{what} {value} is out of range: use {least} to {most}")
    return number


@dataclass(frozen=True)
class Result:
    tokens: NDArray[np.int64]  # (images, cells), raster order
    images: NDArray[np.uint8] | None  # (images, height, width, 3); None where the bundle has no tokenizer
    steps: int  # engine calls an image took
    seconds: float  # decoding of tokens, wall clock
    image_seconds: float  # tokens to pixels, wall clock


def guided_rows(images: int, guided: bool) -> int:
    """Rows of a step: with guidance, the conditional ones, then as many unconditional."""
    return 2 * images if guided else images


class Runner:
    """Generates images from one bundle. Use it as a context manager; calls from several threads take turns."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self._engine: Engine | None = engine
        self._lock = threading.Lock()
        self._plan = lru_cache(maxsize=8)(self._make_plan)

    @classmethod
    def open(
        cls,
        path: Path | str,
        target: str = "onnxruntime",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> Runner:
        """Open a bundle and load the engine that `arforge build` made for it.

        Raises BundleError for a bundle that cannot be used and EngineError for an engine that is not built or not
        known. `threads`: CPU threads of the engine, None for one a core.
        """
        if target not in ENGINES:
            raise EngineError(f"unknown target {target!r}: this arforge runs {', '.join(ENGINES)}")
        if threads is not None and threads < 1:
            raise EngineError(f"{threads} threads: use at least 1, or leave it out for one a core")
        bundle = open_bundle(path)
        return cls(bundle, ENGINES[target](bundle, precision, threads))

    def generate(
        self,
        classes: Sequence[int],
        seeds: Sequence[int] | None = None,
        schedule: str = "ntp",
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        batch: int = DEFAULT_BATCH,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
    ) -> Result:
        """Generate one image for each class.

        `seeds` (default 0, 1, …) decide each image alone: neither the batch nor the order matters. Sampling settings
        left out are the bundle's defaults; `greedy` is temperature 0. `batch`: images decoded at a time. `cancel` is
        looked at between steps and raises Cancelled. Raises RequestError, ScheduleError or EngineError for
        arguments that do not fit.
        """
        sampler = self.bundle.sampler
        request = Request(
            guidance=sampler.guidance if guidance is None else guidance,
            temperature=0.0 if greedy else sampler.temperature if temperature is None else temperature,
            top_k=sampler.top_k if top_k is None else top_k,
            top_p=sampler.top_p if top_p is None else top_p,
        )
        labels = self._check_classes(classes)
        numbers = self._check_seeds(seeds, len(labels))
        batch = whole("batch", batch, 1, MAX_TOP_K)
        with self._lock:
            plan = self._plan(schedule)
            parts = range(0, len(labels), batch)
            steps = len(plan.steps)
            tokens = np.empty((len(labels), self.bundle.model.cells), dtype=np.int64)
            start = time.perf_counter()
            for index, first in enumerate(parts):
                part = slice(first, first + batch)

                def advance(done: int, before: int = index * steps) -> None:
                    if progress is not None:
                        progress(before + done, len(parts) * steps)

                tokens[part] = self._decode(plan, labels[part], numbers[part], request, advance, cancel)
            decoded = time.perf_counter()
            images = self._images(tokens, batch)
            finished = time.perf_counter()
        return Result(tokens, images, steps, decoded - start, finished - decoded)

    def close(self) -> None:
        """Free the engine. Calling it again does nothing; generating afterwards raises EngineError."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
                self._plan.cache_clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(
        self,
        plan: Plan,
        classes: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        request: Request,
        progress: Callable[[int], None],
        cancel: CancelFlag | None,
    ) -> NDArray[np.int64]:
        engine = self._live_engine()
        images, cells = len(classes), plan.schedule.cells
        rows = guided_rows(images, guided=request.guidance != 1)
        known = plan.known(self.bundle.model, classes, rows)
        random = uniforms(seeds, cells)
        engine.prepare(images, rows, plan.slots, plan.schedule.zero_slots)
        engine.scalars.temperature[:] = request.temperature
        engine.scalars.top_k[:] = request.top_k
        engine.scalars.top_p[:] = request.top_p
        for index, step in enumerate(plan.steps):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"cancelled after {index} of {len(plan.steps)} steps")
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known)
            buffers.uniforms[:, step.target_rows] = random[:, step.target_cells]
            engine.scalars.guidance[:] = step.scale(request.guidance)
            engine.run(step.width, step.queries)
            step.store(buffers, known)
            progress(index + 1)
        return known[:images, :cells]

    def _images(self, tokens: NDArray[np.int64], batch: int) -> NDArray[np.uint8] | None:
        if self.bundle.tokenizer is None:
            return None
        engine = self._live_engine()
        parts = [engine.decode(tokens[first : first + batch]) for first in range(0, len(tokens), batch)]
        return np.concatenate(parts)

    def _make_plan(self, schedule: str) -> Plan:
        return make_plan(self.bundle.schedule(schedule), self._live_engine().widths)

    def _live_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("the runner is closed: open it again")
        return self._engine

    def _check_classes(self, classes: Sequence[int]) -> NDArray[np.int64]:
        model = self.bundle.model
        if len(classes) == 0:
            raise RequestError("no classes given: name at least one")
        return np.array([whole("class", label, 0, model.classes - 1) for label in classes], dtype=np.int64)

    @staticmethod
    def _check_seeds(seeds: Sequence[int] | None, images: int) -> NDArray[np.uint64]:
        if seeds is None:
            return np.arange(images, dtype=np.uint64)
        if len(seeds) != images:
            raise RequestError(f"{len(seeds)} seeds for {images} classes: give one seed an image")
        return np.array([whole("seed", seed, 0, MAX_SEED) for seed in seeds], dtype=np.uint64)
