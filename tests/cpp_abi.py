"""The C interface by ctypes, with the same arguments as the Python runner's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from arforge import runner
from arforge.runner import RequestError

STATUS = {
    "argument": 1,
    "request": 2,
    "schedule": 3,
    "cancelled": 4,
    "bundle": 5,
    "manifest": 6,
    "format_version": 7,
    "path": 8,
    "missing_file": 9,
    "file_size": 10,
    "hash": 11,
    "engine": 12,
    "memory": 13,
    "internal": 14,
    "numerics": 15,
    "queue_full": 16,
    "deadline_exceeded": 17,
}
PROGRESS = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int64, c_int64)
PREVIEW = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)


class Options(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("target", c_char_p),
        ("precision", c_char_p),
        ("provider", c_char_p),
        ("plugin", c_char_p),
        ("threads", c_int32),
        ("check_hashes", c_int32),
        ("look_every", c_int64),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("classes", ctypes.POINTER(c_int64)),
        ("seeds", ctypes.POINTER(c_uint64)),
        ("images", c_size_t),
        ("schedule", c_char_p),
        ("guidance", c_double),
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int64),
        ("guidances", ctypes.POINTER(c_double)),
        ("temperatures", ctypes.POINTER(c_double)),
        ("top_ps", ctypes.POINTER(c_double)),
        ("top_ks", ctypes.POINTER(c_int64)),
        ("greedy", c_int32),
        ("batch", c_int64),
        ("known", ctypes.POINTER(c_int64)),
        ("known_images", c_size_t),
        ("known_rows", c_size_t),
        ("known_columns", c_size_t),
        ("progress", PROGRESS),
        ("preview", PREVIEW),
        ("user", c_void_p),
        ("features", ctypes.POINTER(c_float)),
        ("lengths", ctypes.POINTER(c_size_t)),
        ("width", c_size_t),
        ("ids", ctypes.POINTER(c_int64)),
        ("unconditional", c_char_p),
        ("negative_ids", ctypes.POINTER(c_int64)),
        ("negative_lengths", ctypes.POINTER(c_size_t)),
        ("negatives", c_size_t),
        ("prefill", c_char_p),
    )
    hooks: list[Any]  # what C calls, which lives on where the request does not


class Facts(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("classes", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("vocabulary", c_int64),
        ("downsampling", c_int64),
        ("feature_slots", c_int64),
        ("feature_width", c_int64),
        ("id_slots", c_int64),
        ("id_vocabulary", c_int64),
    )


class PartialFacts(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("first", c_size_t),
        ("images", c_size_t),
        ("done", c_int64),
        ("steps", c_int64),
        ("rows", c_size_t),
        ("columns", c_size_t),
    )


class Failure(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Result:
    tokens: np.ndarray  # int64 [images, cells]
    grid: tuple[int, int]
    images: np.ndarray | None  # uint8 [images, height, width, 3]
    steps: int
    passes: np.ndarray  # int64 [images]
    seconds: tuple[float, float, float]  # decoding, of it in the engine, images
    condition_seconds: float


@dataclass(frozen=True)
class Partial:
    """Partial images, while the function that they are given to runs."""

    runner: Runner
    handle: int

    @property
    def facts(self) -> PartialFacts:
        found = PartialFacts(size=ctypes.sizeof(PartialFacts))
        self.runner.check(self.runner.library.arforge_partial_read(c_void_p(self.handle), ctypes.byref(found)))
        return found

    def tokens(self) -> np.ndarray:
        tokens, facts = ctypes.POINTER(c_int64)(), self.facts
        self.runner.check(self.runner.library.arforge_partial_tokens(c_void_p(self.handle), ctypes.byref(tokens)))
        return np.ctypeslib.as_array(tokens, (facts.images, facts.rows * facts.columns)).copy()

    def pixels(self, undecided: str = "nearest") -> np.ndarray:
        pixels, height, width = ctypes.POINTER(c_uint8)(), c_size_t(), c_size_t()
        way = {"nearest": 0, "grey": 1}.get(undecided, 7)
        places = map(ctypes.byref, (pixels, height, width))
        self.runner.check(self.runner.library.arforge_partial_pixels(c_void_p(self.handle), way, *places))
        return np.ctypeslib.as_array(pixels, (self.facts.images, height.value, width.value, 3)).copy()


def joined(lists: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Numbers, one list behind another, and how many each has."""
    whole = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
    numbers = (c_int64 * max(1, len(whole)))(*whole.tolist())  # which the pointer keeps alive
    return ctypes.cast(numbers, ctypes.POINTER(c_int64)), (c_size_t * len(lists))(*map(len, lists))


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.arforge_last_error.restype = c_char_p
    library.arforge_result_tokens.restype = ctypes.POINTER(c_int64)
    library.arforge_result_pixels.restype = ctypes.POINTER(c_uint8)
    library.arforge_result_steps.restype = c_int64
    library.arforge_result_passes.restype = ctypes.POINTER(c_int64)
    library.arforge_result_condition_seconds.restype = c_double
    return library


class Runner:
    def __init__(self, library: ctypes.CDLL, bundle: Path | str, **options: Any) -> None:
        self.library, self.handle = library, c_void_p()
        given = Options()
        library.arforge_options_init(ctypes.byref(given))
        for name, value in options.items():
            setattr(given, name, value.encode() if isinstance(value, str) else value)
        self.check(library.arforge_open(os.fsencode(bundle), ctypes.byref(given), ctypes.byref(self.handle)))

    def check(self, status: int) -> None:
        if status:
            raise Failure(status, self.library.arforge_last_error().decode(errors="surrogateescape"))

    def facts(self) -> Facts:
        found = Facts(size=ctypes.sizeof(Facts))
        self.check(self.library.arforge_runner_facts(self.handle, ctypes.byref(found)))
        return found

    def generate(self, *asked: Any, **settings: Any) -> Result:
        """Of the arguments of `request`."""
        request, result = self.request(*asked, **settings), c_void_p()
        self.check(self.library.arforge_generate(self.handle, ctypes.byref(request), ctypes.byref(result)))
        return self.taken(result)

    def request(
        self,
        classes: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        schedule: str | None = None,
        known: np.ndarray | None = None,
        progress: Callable[[int, int], object] | None = None,
        preview: Callable[[Partial], object] | None = None,
        features: Sequence[np.ndarray] | None = None,
        ids: Sequence[np.ndarray] | None = None,
        negative_ids: Sequence[np.ndarray] | np.ndarray | None = None,
        **settings: Any,
    ) -> Request:
        """`progress` cancels where it returns something true. Settings: one value, or a list of one an image."""
        request = Request()
        request.kept = []  # arrays that it points to
        self.library.arforge_request_init(ctypes.byref(request))
        if classes is not None:
            request.classes = (c_int64 * len(classes))(*classes)
            request.images = len(classes)
        if features is not None:
            values = np.concatenate([np.asarray(one, np.float32).reshape(-1) for one in features])
            request.kept.append(values)
            request.features = values.ctypes.data_as(ctypes.POINTER(c_float))
            request.lengths = (c_size_t * len(features))(*map(len, features))
            request.width = features[0].shape[1]
            request.images = len(features)
        if ids is not None:
            request.ids, request.lengths = joined(ids)
            request.images = len(ids)
        if negative_ids is not None:
            negatives = [negative_ids] if isinstance(negative_ids, np.ndarray) else negative_ids
            request.negative_ids, request.negative_lengths = joined(negatives)
            request.negatives = len(negatives)
        if seeds is not None:
            request.seeds = (c_uint64 * len(seeds))(*seeds)
        if schedule is not None:
            request.schedule = schedule.encode()
        if known is not None:
            flat = np.ascontiguousarray(known, dtype=np.int64)
            request.kept.append(flat)
            request.known = flat.ctypes.data_as(ctypes.POINTER(c_int64))
            request.known_images = flat.shape[0] if flat.ndim == 3 else 1
            request.known_rows, request.known_columns = flat.shape[-2:]
        self._hook(request, progress, preview)
        for name, value in settings.items():
            if isinstance(value, str):
                setattr(request, name, value.encode())
            elif isinstance(value, Sequence):
                kind = c_int64 if name == "top_k" else c_double
                setattr(request, f"{name}s", (kind * len(value))(*value))
            else:
                setattr(request, name, value)
        return request

    def _hook(self, request: Request, progress: Callable[[int, int], object] | None, preview: Any) -> None:
        hooks: dict[str, Any] = {}
        if progress is not None:
            hooks["progress"] = PROGRESS(lambda _, done, steps: int(bool(progress(done, steps))))
        if preview is not None:
            hooks["preview"] = PREVIEW(lambda _, handle: (preview(Partial(self, handle)), None)[1])
        for name, hook in hooks.items():
            setattr(request, name, hook)
        request.hooks = list(hooks.values())

    def taken(self, result: c_void_p) -> Result:
        """What a result holds; it is freed."""
        try:
            return self._result(result)
        finally:
            self.library.arforge_result_free(result)

    def encode(self, images: np.ndarray, capacity: int) -> np.ndarray:
        tokens = np.full(capacity, -7, dtype=np.int64)
        sizes = (c_size_t(size) for size in images.shape[:3])
        status = self.library.arforge_encode(
            self.handle,
            images.ctypes.data_as(c_void_p),
            *sizes,
            tokens.ctypes.data_as(c_void_p),
            c_size_t(capacity),
        )
        self.check(status)
        return tokens

    def close(self) -> None:
        self.library.arforge_close(self.handle)
        self.handle = c_void_p()

    def _result(self, result: c_void_p) -> Result:
        images, rows, columns, height, width = (c_size_t() for _ in range(5))
        tokens = self.library.arforge_result_tokens(
            result, ctypes.byref(images), ctypes.byref(rows), ctypes.byref(columns)
        )
        pixels = self.library.arforge_result_pixels(result, ctypes.byref(height), ctypes.byref(width))
        passes = self.library.arforge_result_passes(result, ctypes.byref(images))
        seconds = [c_double() for _ in range(3)]
        self.library.arforge_result_seconds(result, *map(ctypes.byref, seconds))
        pictures = None
        if pixels:
            pictures = np.ctypeslib.as_array(pixels, (images.value, height.value, width.value, 3)).copy()
        return Result(
            np.ctypeslib.as_array(tokens, (images.value, rows.value * columns.value)).copy(),
            (rows.value, columns.value),
            pictures,
            self.library.arforge_result_steps(result),
            np.ctypeslib.as_array(passes, (images.value,)).copy(),
            tuple(value.value for value in seconds),
            self.library.arforge_result_condition_seconds(result),
        )


class Batcher:
    """A batcher over a runner, closed as a context manager."""

    def __init__(self, opened: Runner, batch: int = 8, waiting: int = 64) -> None:
        self.runner, self.library, self.handle = opened, opened.library, c_void_p()
        self.hooks: list[Any] = []  # of requests, whose numbers are free to go
        opened.check(
            self.library.arforge_batcher_open(
                opened.handle, c_size_t(batch), c_size_t(waiting), ctypes.byref(self.handle)
            )
        )

    def submit(self, *asked: Any, timeout: float = 0, **settings: Any) -> Answer:
        """`asked` and `settings` as of `Runner.request`; `timeout` 0: none."""
        request, handle = self.runner.request(*asked, **settings), c_void_p()
        self.runner.check(
            self.library.arforge_submit(self.handle, ctypes.byref(request), c_double(timeout), ctypes.byref(handle))
        )
        self.hooks.append(request.hooks)
        return Answer(self.runner, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.arforge_batcher_close(self.handle)
        self.handle = c_void_p()


@dataclass(frozen=True)
class Answer:
    runner: Runner
    handle: c_void_p

    def result(self) -> Result:
        found = c_void_p()
        self.runner.check(self.runner.library.arforge_answer_result(self.handle, ctypes.byref(found)))
        return self.runner.taken(found)

    def wait(self, seconds: float) -> bool:
        return bool(self.runner.library.arforge_answer_wait(self.handle, c_double(seconds)))

    def cancel(self) -> bool:
        return bool(self.runner.library.arforge_answer_cancel(self.handle))

    def __del__(self) -> None:
        self.runner.library.arforge_answer_free(self.handle)


def refused_alike(ours: Runner, theirs: runner.Runner, **asked: Any) -> str:
    """The message of a request that both runners refuse in the same words."""
    with pytest.raises(Failure) as refused:
        ours.generate(**asked)
    with pytest.raises(RequestError) as expected:
        theirs.generate(**asked)
    assert (refused.value.status, refused.value.message) == (STATUS["request"], str(expected.value))
    return refused.value.message
