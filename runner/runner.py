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
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine
from arforge.runner.backends.image_codec import ImageCodec, OnnxRuntimeCodec
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.tensorrt_codec import TensorRTCodec
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.bundle import Bundle, use_bundle
from arforge.runner.canvas import Canvas, make_canvas
from arforge.runner.conditioner import Conditioner
from arforge.runner.conditions import Conditions, prompt_slots
from arforge.runner.decoding import Decoding, Drawing, decoding_of
from arforge.runner.device import check_threads
from arforge.runner.errors import EngineError, RequestError
from arforge.runner.images import Keep, Pixels
from arforge.runner.loop_graph import LOOK_EVERY
from arforge.runner.looped import looped
from arforge.runner.numerics import check_step
from arforge.runner.plan import Plan, make_plan
from arforge.runner.prefill import Prefill
from arforge.runner.preview import Partial, Preview, partial_of
from arforge.runner.randomness import Randomness
from arforge.runner.request import (
    DEFAULT_BATCH,
    MAX_BATCH,
    BatchSampling,
    CancelFlag,
    Progress,
    Request,
    Watch,
    asked_of,
    check_images,
    check_schedule,
    check_seeds,
    sampling_of,
    whole,
)
from arforge.runner.schedules.jacobi_windows import settled
from arforge.runner.schedules.specification import require_keeping
from arforge.runner.schedules.visibility import sees_all_before
from arforge.runner.tabled import tabled
from arforge.runner.targets import default_precision

MAX_LOOK_EVERY = 2**30
ON_HOST = "onnxruntime"  # the target whose every call the host makes


@dataclass(frozen=True)
class Images:
    """The images of a request that are decoded together."""

    first: int  # their place in the request
    conditions: Conditions
    sampling: BatchSampling
    random: Randomness  # of the window that is decoded


@dataclass(frozen=True)
class Result:
    tokens: NDArray[np.int64]  # (images, cells), raster order of the grid
    grid: tuple[int, int]  # rows, columns: the model's, or that of the known tokens
    images: NDArray[np.uint8] | None  # (images, height, width, 3); None without a tokenizer, or as asked
    steps: int  # engine calls until the last image of a batch was done
    passes: NDArray[np.int64]  # (images) engine calls until each was done: fewer where it runs ahead on drafts
    seconds: float  # decoding of tokens, wall clock
    image_seconds: float  # tokens to pixels, wall clock
    condition_seconds: float = 0.0  # prompts to filled caches, wall clock; next to nothing for classes
    schedule: str = ""  # by which its largest batch was decoded: `jacobi:auto` with the window that it took


def open_engine(
    bundle: Bundle,
    target: str,
    precision: str | None = None,
    threads: int | None = None,
    look_every: int | None = None,
) -> Engine:
    """Load the engine that `arforge build` made, by default of the target's usual precision.

    `threads` are for ONNX Runtime, `look_every` for TensorRT (`Runner.open`). Raises EngineError if it is not built or
    not known.
    """
    if precision is not None and not isinstance(precision, str):
        raise RequestError(f"precision {precision!r} is no text: use one such as 'fp32', or None for the target's own")
    usual = default_precision(target, bundle.model.stored_precision)
    precision = precision or usual
    checked = check_threads(threads)
    if target != ON_HOST:
        calls = LOOK_EVERY if look_every is None else whole("look-every", look_every, 0, MAX_LOOK_EVERY)
        return TensorRTEngine.built(target, bundle, precision, calls)
    if look_every is not None:
        raise RequestError(f"look-every is for TensorRT: with {target} the host makes each call, so leave it out")
    return OnnxRuntimeEngine.built(bundle, precision, checked)


def open_codec(bundle: Bundle, engine: Engine, threads: int | None = None) -> ImageCodec:
    """What codes the bundle's images beside that engine; close it before the engine."""
    if isinstance(engine, TensorRTEngine):
        return TensorRTCodec(bundle, engine, OnnxRuntimeCodec(bundle, threads))
    return OnnxRuntimeCodec(bundle, threads)


class Runner:
    """Generates images from one bundle. Use it as a context manager; calls from several threads take turns."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        codec: ImageCodec | None = None,
        conditioner: Conditioner | None = None,
    ) -> None:
        """All are closed with the runner. `codec`, `conditioner` None: the bundle's graphs on ONNX Runtime."""
        self.bundle = bundle
        self._engine: Engine | None = engine
        self._codec = codec or OnnxRuntimeCodec(bundle)
        self._conditioner = conditioner or Conditioner(bundle)
        self._prefill = Prefill(engine, bundle.model)
        self._lock = threading.Lock()
        self._plans = lru_cache(maxsize=8)(self._make_plan)

    @classmethod
    def open(
        cls,
        path: Path | str,
        target: str = "onnxruntime",
        precision: str | None = None,
        threads: int | None = None,
        look_every: int | None = None,
    ) -> Runner:
        """Open a bundle and load the engine that `arforge build` made for it.

        Raises BundleError for a bundle that cannot be used and EngineError for an engine that is not built or not
        known. `precision`: by default fp32, of TensorRT fp16, or the blocks that the bundle stores. `threads`: CPU
        threads of the engine, by default one an available core. `look_every`, of TensorRT: calls that
        the device makes by itself between two looks of the host, for progress, cancel and previews; by default 8, 0 is
        all of an image's.
        """

        def opened(bundle: Bundle) -> Runner:
            engine = open_engine(bundle, target, precision, threads, look_every)
            return cls(bundle, engine, open_codec(bundle, engine, threads), Conditioner(bundle, threads))

        return use_bundle(path, opened)

    @overload
    def generate(
        self,
        request: Request,
        /,
        *,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
        preview: Preview | None = None,
        images: Keep = True,
    ) -> Result: ...
    @overload
    def generate(
        self,
        classes: Sequence[int | str] | None = None,
        seeds: Sequence[int] | None = None,
        schedule: str | None = None,
        guidance: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        greedy: bool | Sequence[bool] = False,
        batch: int = DEFAULT_BATCH,
        *,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
        preview: Preview | None = None,
        known: NDArray[np.int64] | None = None,
        prompts: Sequence[str] | None = None,
        features: Sequence[NDArray[np.float32]] | None = None,
        ids: Sequence[NDArray[np.int64]] | None = None,
        captions: str | None = None,
        truncate: bool = False,
        unconditional: str | None = None,
        negative: str | Sequence[str] | None = None,
        negative_ids: NDArray[np.int64] | Sequence[NDArray[np.int64]] | None = None,
        prefill: str | None = None,
        images: Keep = True,
    ) -> Result: ...
    def generate(
        self,
        *given: Any,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
        preview: Preview | None = None,
        images: Keep = True,
        **settings: Any,
    ) -> Result:
        """Generate the images of a `Request`, or of one made from these arguments, which are its fields.

        `progress` is called after every step, `cancel` is looked at between steps and raises Cancelled; where a device
        makes several calls by itself (`looped.py`), after and between those. `preview` is called as `progress`, with
        the `Partial` images, which cost only what it asks of them. `images`:
        whether the result holds pixels, where the bundle has an image tokenizer; or a function that is given those of
        each batch in their place, uint8 [images, height, width, 3] in order: any number of them in little memory.
        Raises RequestError, ScheduleError or EngineError for a request that does not fit, NumericsError for the step
        in which logits are non-finite; the runner can be used on.
        """
        if not (given and isinstance(given[0], Request)):
            return self._generate(Request(*given, **settings), Watch(progress, cancel, preview), images)
        if len(given) > 1 or settings:
            raise RequestError("a Request says all of it: give no other arguments beside it (dataclasses.replace)")
        return self._generate(given[0], Watch(progress, cancel, preview), images)

    def _generate(self, request: Request, watch: Watch, keep: Keep) -> Result:
        model = self.bundle.model
        count = len(asked_of(request)[1])
        sampling = sampling_of(request, self.bundle.sampler, count)
        schedule = check_schedule(request.schedule, self.bundle.default_schedule)
        numbers = check_seeds(request.seeds, count)
        batch = whole("batch", request.batch, 1, MAX_BATCH)
        canvas = make_canvas(request.known, count, model.grid, model.vocabulary)
        if not canvas.plain:
            require_keeping(schedule)
        random = Randomness.of(numbers, canvas.tokens.shape[1])
        with self._lock:
            self._live_engine()
            start = time.perf_counter()
            conditions = self._conditioner.conditions(request, guided=sampling.guided)
            condition_seconds, self._prefill.seconds = time.perf_counter() - start, 0.0
            slots = prompt_slots(model, conditions.longest)
            engine = self._live_engine()
            together = min(batch, engine.largest_batch or batch)
            taken = settled(schedule, engine.measured, min(together, count))
            plans = self._plans_of(taken, canvas, slots)
            if engine.one_mask and any(plan.own_pace for plan in plans):
                together = 1  # since images get on at paces of their own
            parts = [slice(first, first + together) for first in range(0, count, together)]
            steps = sum(plan.length for plan in plans)
            watch.steps = steps * len(parts)
            codec = None if self.bundle.image_tokenizer is None else self._codec
            pixels = Pixels(count, keep) if keep and self.bundle.image_tokenizer is not None else None
            passes = np.zeros(count, np.int64)
            seconds = image_seconds = 0.0
            try:
                for part in parts:
                    start = time.perf_counter()
                    own_schedule = settled(schedule, engine.measured, len(numbers[part]))
                    for plan, window in zip(self._plans_of(own_schedule, canvas, slots), canvas.windows, strict=True):
                        place = (part, window.cells)
                        own = random.part(part, window.cells)
                        images = Images(part.start, conditions.part(part), sampling.part(part), own)
                        seen = partial(partial_of, canvas, part, window, codec, steps)
                        canvas.tokens[place], calls = self._decode(plan, images, canvas.tokens[place], watch, seen)
                        passes[part] += calls
                    decoded = time.perf_counter()
                    seconds += decoded - start
                    if pixels is not None:
                        pixels.add(self._codec.decode(canvas.tokens[part].reshape(-1, *canvas.grid)))
                        image_seconds += time.perf_counter() - decoded
            finally:
                self._prefill.release()
            filling = self._prefill.seconds
        kept = None if pixels is None else pixels.kept
        return Result(
            tokens=canvas.tokens,
            grid=canvas.grid,
            images=kept,
            steps=int(passes.max()),
            passes=passes,
            seconds=seconds - filling,
            image_seconds=image_seconds,
            condition_seconds=condition_seconds + filling,
            schedule=taken,
        )

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tokens of images, uint8 [images, height, width, 3] to int64 [images, rows, columns].

        Raises RequestError if the bundle has no tokenizer, or for images that are not a whole number of tokens.
        """
        check_images(images, self.bundle.image_tokenizer)
        with self._lock:
            self._live_engine()
            parts = [images[first : first + DEFAULT_BATCH] for first in range(0, len(images), DEFAULT_BATCH)]
            return np.concatenate([self._codec.encode(part) for part in parts])

    @property
    def device(self) -> str:
        """What the engine runs on, for figures."""
        return self._live_engine().device

    def plan(self, schedule: str, kept: tuple[int, ...] = (), prompt_slots: int = 0) -> Plan:
        """The steps that the engine is given for a schedule. Raises ScheduleError or EngineError as `generate`."""
        with self._lock:
            return self._plans(schedule, kept, prompt_slots)

    def close(self) -> None:
        """Free the engine. Calling it again does nothing; generating afterwards raises EngineError."""
        with self._lock:
            if self._engine is not None:
                self._codec.close()
                self._conditioner.close()
                self._prefill.clear()
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
        images: Images,
        tokens: NDArray[np.int64],
        watch: Watch,
        seen: Callable[[Decoding, int], Partial],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens (images, cells) of one window, from those of its kept cells, and the calls each image took."""
        engine, count = self._live_engine(), len(images.conditions)
        prompts = images.conditions.rows(images.sampling.guided)
        prefixes = self._prefill.start(plan, count, prompts, images.first)
        images.sampling.fill(engine.settings)
        drawing = Drawing(images.random, images.sampling.guidance)
        model = self.bundle.model
        decoding = (
            tabled(engine, plan, model, prompts, prefixes, drawing, tokens)
            or looped(engine, plan, model, prompts, prefixes, drawing)
            or decoding_of(plan, model, prompts, prefixes, drawing, tokens)
        )
        before = watch.done
        while (shape := decoding.shape) is not None:
            watch.before_step()
            buffers = engine.buffers(*shape)
            decoding.fill(buffers)
            decoding.run(engine, shape)
            check_step(engine, model, plan, decoding, buffers, images.first)
            decoding.store(buffers)
            watch.after_step(before + decoding.done)
            if watch.preview is not None:
                watch.preview(seen(decoding, watch.done))
        return decoding.known[:count, : plan.schedule.cells], decoding.passes

    def _plans_of(self, schedule: str, canvas: Canvas, prompt_slots: int) -> list[Plan]:
        """One for each window of the canvas."""
        return [self._plans(schedule, window.kept, prompt_slots) for window in canvas.windows]

    def _make_plan(self, schedule: str, kept: tuple[int, ...], prompt_slots: int) -> Plan:
        engine, table = self._live_engine(), self.bundle.schedule(schedule, kept)
        if engine.own_mask and not sees_all_before(table):
            raise EngineError(
                "the engine was built for next-token decoding, in which all that is before is seen: build it again "
                f"with --schedule {schedule}"
            )
        plan = make_plan(table, engine.widths, prompt_slots, engine.exact_width)
        engine.accept(plan)
        return plan

    def _live_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("the runner is closed: open it again")
        return self._engine
