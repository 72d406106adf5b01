"""The runner: a loop that executes a schedule against an engine.

with Runner.open("llamagen-l.bundle") as runner:
    result = runner.generate(classes=[207, 360], seeds=[0, 1], schedule="zipar:16", guidance=2.0)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.bundle import Bundle, use_bundle
from arforge.runner.canvas import make_canvas
from arforge.runner.errors import EngineError
from arforge.runner.numerics import check_step
from arforge.runner.plan import Plan, make_plan
from arforge.runner.randomness import uniforms
from arforge.runner.request import (
    MAX_BATCH,
    CancelFlag,
    Progress,
    Request,
    Watch,
    check_classes,
    check_images,
    check_seeds,
    whole,
)
from arforge.runner.schedules.specification import require_keeping

ENGINES: dict[str, Callable[[Bundle, str, int | None], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine.built,
    "tensorrt": partial(TensorRTEngine.built, "tensorrt"),
    "tensorrt-rtx": partial(TensorRTEngine.built, "tensorrt-rtx"),
}
DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Result:
    tokens: NDArray[np.int64]  # (images, cells), raster order of the grid
    grid: tuple[int, int]  # rows, columns: the model's, or that of the known tokens
    images: NDArray[np.uint8] | None  # (images, height, width, 3); None without a tokenizer, or as asked
    steps: int  # engine calls an image took
    seconds: float  # decoding of tokens, wall clock
    image_seconds: float  # tokens to pixels, wall clock


class Pixels:
    """The images of a generation, as they come: handed on, or all kept in one array."""

    def __init__(self, count: int, keep: bool | Callable[[NDArray[np.uint8]], object]) -> None:
        self.kept: NDArray[np.uint8] | None = None
        self._count, self._done = count, 0
        self._receive = None if keep is True else keep

    def add(self, images: NDArray[np.uint8]) -> None:
        """Take the next ones, uint8 [images, height, width, 3]."""
        if callable(self._receive):
            self._receive(images)
        elif len(images) == self._count:
            self.kept = images
        else:
            if self.kept is None:
                self.kept = np.empty((self._count, *images.shape[1:]), dtype=np.uint8)
            self.kept[self._done : self._done + len(images)] = images
        self._done += len(images)


def guided_rows(images: int, guided: bool) -> int:
    """Rows of a step: with guidance, the conditional ones, then as many unconditional."""
    return 2 * images if guided else images


def open_engine(bundle: Bundle, target: str, precision: str, threads: int | None = None) -> Engine:
    """Load the engine that `arforge build` made. Raises EngineError where it is not built or not known."""
    if target not in ENGINES:
        raise EngineError(f"unknown target {target!r}: this arforge runs {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads: use at least 1, or leave it out for one a core")
    return ENGINES[target](bundle, precision, threads)


class Runner:
    """Generates images from one bundle. Use it as a context manager; calls from several threads take turns."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self._engine: Engine | None = engine
        self._lock = threading.Lock()
        self._plans = lru_cache(maxsize=8)(self._make_plan)

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
        return use_bundle(path, lambda bundle: cls(bundle, open_engine(bundle, target, precision, threads)))

    def generate(
        self,
        classes: Sequence[int],
        seeds: Sequence[int] | None = None,
        schedule: str | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        batch: int = DEFAULT_BATCH,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
        known: NDArray[np.int64] | None = None,
        images: bool | Callable[[NDArray[np.uint8]], object] = True,
    ) -> Result:
        """Generate one image for each class.

        `seeds` (default 0, 1, …) decide each image alone: neither the batch nor the order matters. Schedule and
        sampling settings left out are the bundle's defaults; `greedy` is temperature 0. `batch`: images decoded at a
        time, fewer where the engine was built for fewer. `cancel` is looked at between steps and raises Cancelled.
        Raises RequestError, ScheduleError or EngineError for arguments that do not fit, NumericsError for the step in
        which logits are NaN or infinite; the runner can be used on.

        `known`, for models of random order: tokens that stay, int64 [rows, columns] for all images or
        [images, rows, columns], -1 in the cells to decide (`encode` gives those of an image). A grid larger than the
        model's is decoded window by window.

        `images`: whether the result holds pixels, where the bundle has an image tokenizer; or a function that is given
        those of each batch, uint8 [images, height, width, 3] in order, in their place: any number in little memory.
        """
        sampler = self.bundle.sampler
        request = Request(
            guidance=sampler.guidance if guidance is None else guidance,
            temperature=0.0 if greedy else sampler.temperature if temperature is None else temperature,
            top_k=sampler.top_k if top_k is None else top_k,
            top_p=sampler.top_p if top_p is None else top_p,
        )
        schedule = schedule or self.bundle.default_schedule
        labels = check_classes(classes, self.bundle.model.class_condition.classes)
        numbers = check_seeds(seeds, len(labels))
        batch = whole("batch", batch, 1, MAX_BATCH)
        canvas = make_canvas(known, len(labels), self.bundle.model.grid, self.bundle.model.vocabulary)
        if not canvas.plain:
            require_keeping(schedule)
        random = uniforms(numbers, canvas.tokens.shape[1])
        with self._lock:
            plans = [self._plans(schedule, window.kept) for window in canvas.windows]
            together = min(batch, self._live_engine().largest_batch or batch)
            parts = [slice(first, first + together) for first in range(0, len(labels), together)]
            steps = sum(len(plan.steps) for plan in plans)
            watch = Watch(steps * len(parts), progress, cancel)
            pixels = Pixels(len(labels), images) if images and self.bundle.image_tokenizer is not None else None
            seconds = image_seconds = 0.0
            for part in parts:
                start = time.perf_counter()
                for plan, window in zip(plans, canvas.windows, strict=True):
                    place = (part, window.cells)
                    given, numbers_of = canvas.tokens[place], random[place]
                    canvas.tokens[place] = self._decode(
                        plan, request, labels[part], given, numbers_of, watch, part.start
                    )
                decoded = time.perf_counter()
                seconds += decoded - start
                if pixels is not None:
                    pixels.add(self._live_engine().decode(canvas.tokens[part].reshape(-1, *canvas.grid)))
                    image_seconds += time.perf_counter() - decoded
        kept = None if pixels is None else pixels.kept
        return Result(canvas.tokens, canvas.grid, kept, steps, seconds, image_seconds)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tokens of images, uint8 [images, height, width, 3] to int64 [images, rows, columns].

        Raises RequestError where the bundle has no tokenizer, or for images that are not a whole number of tokens.
        """
        check_images(images, self.bundle.image_tokenizer)
        with self._lock:
            engine = self._live_engine()
            parts = [images[first : first + DEFAULT_BATCH] for first in range(0, len(images), DEFAULT_BATCH)]
            return np.concatenate([engine.encode(part) for part in parts])

    @property
    def device(self) -> str:
        """What the engine runs on, for figures."""
        return self._live_engine().device

    def plan(self, schedule: str, kept: tuple[int, ...] = ()) -> Plan:
        """The steps that the engine is given for a schedule. Raises ScheduleError or EngineError as `generate`."""
        with self._lock:
            return self._plans(schedule, kept)

    def close(self) -> None:
        """Free the engine. Calling it again does nothing; generating afterwards raises EngineError."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
                self._plans.cache_clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(
        self,
        plan: Plan,
        request: Request,
        classes: NDArray[np.int64],
        tokens: NDArray[np.int64],
        random: NDArray[np.float32],
        watch: Watch,
        first_image: int,
    ) -> NDArray[np.int64]:
        """The tokens (images, cells) of one window, from those of its kept cells and a number a cell."""
        engine, images = self._live_engine(), len(classes)
        rows = guided_rows(images, guided=request.guidance != 1)
        known = plan.known(self.bundle.model, classes, rows, tokens)
        engine.prepare(images, rows, plan.slots, plan.schedule.zero_slots)
        engine.scalars.temperature[:] = request.temperature
        engine.scalars.top_k[:] = request.top_k
        engine.scalars.top_p[:] = request.top_p
        for index, step in enumerate(plan.steps):
            watch.before_step()
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known)
            buffers.uniforms[:, step.target_rows] = random[:, step.target_cells]
            engine.scalars.guidance[:] = step.scale(request.guidance)
            engine.run(step.width, step.queries)
            check_step(engine, self.bundle.model, plan, index, first_image)
            step.store(buffers, known)
            watch.after_step()
        return known[:images, : plan.schedule.cells]

    def _make_plan(self, schedule: str, kept: tuple[int, ...]) -> Plan:
        return make_plan(self.bundle.schedule(schedule, kept), self._live_engine().widths)

    def _live_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("the runner is closed: open it again")
        return self._engine
