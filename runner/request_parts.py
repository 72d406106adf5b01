"""A request as requests of one image each, and several of those as one again: what batches of strangers are made of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arforge.runner.bundle import Bundle, ClassCondition
from arforge.runner.canvas import UNKNOWN, make_canvas
from arforge.runner.errors import RequestError
from arforge.runner.request import (
    ASKED,
    Request,
    asked_of,
    check_classes,
    check_schedule,
    check_seeds,
    is_list,
    sampling_of,
)
from arforge.runner.schedules.specification import parse, require_keeping, require_order

OF_AN_IMAGE = ("seeds", "guidance", "temperature", "top_k", "top_p", "negative", "negative_ids")
"""Fields of which each image has its own, beside what it is asked for by."""
OF_ALL = ("schedule", "captions", "truncate", "unconditional", "prefill")
"""Fields that images decoded together share."""


def images_of(request: Request, bundle: Bundle) -> list[Request]:
    """The request's images, a request each, with no seed, schedule or sampler setting left to a default.

    Raises RequestError or ScheduleError for what does not fit the bundle, as far as it shows without work.
    """
    name, asked = asked_of(request)
    count = len(asked)
    sampling = sampling_of(request, bundle.sampler, count)
    canvas = make_canvas(request.known, count, bundle.model.grid, bundle.model.vocabulary)
    schedule = str(parse(check_schedule(request.schedule, bundle.default_schedule)))
    require_order(schedule, bundle.model.order)
    if not canvas.plain:
        require_keeping(schedule)
    if name == "classes" and isinstance(bundle.model.condition, ClassCondition):
        check_classes(asked, bundle.model)
    own: dict[str, Any] = {
        name: list(asked),
        "seeds": check_seeds(request.seeds, count).tolist(),
        "guidance": sampling.guidance.tolist(),
        "temperature": sampling.temperature.tolist(),
        "top_k": sampling.top_k.tolist(),
        "top_p": sampling.top_p.tolist(),
        "negative": _each("negative", request.negative, count),
        "negative_ids": _each("negative_ids", request.negative_ids, count),
    }
    known = None if request.known is None else canvas.tokens.reshape(count, 1, *canvas.grid)
    common = replace(request, schedule=schedule, greedy=False, batch=1, known=None)

    def alone(image: int) -> Request:
        fields: dict[str, Any] = {field: values and [values[image]] for field, values in own.items()}
        return replace(common, **fields, known=None if known is None else known[image])

    return [alone(image) for image in range(count)]


def kind_of(image: Request) -> Hashable:
    """Equal for images of `images_of` that can be decoded together."""
    given = tuple(field for field in (*OF_AN_IMAGE, *ASKED) if _has(image, field))
    known = None if image.known is None else (image.known.shape, (image.known == UNKNOWN).tobytes())
    return given, tuple(repr(getattr(image, field)) for field in OF_ALL), known


def joined(images: Sequence[Request]) -> Request:
    """One request for images of one kind, which are decoded at a time."""
    first = images[0]
    name, _ = asked_of(first)
    lists: dict[str, Any] = {
        field: [getattr(image, field)[0] for image in images] for field in (name, *OF_AN_IMAGE) if _has(first, field)
    }
    parts = [image.known for image in images if image.known is not None]
    known = np.concatenate(parts) if parts else None
    return replace(first, **lists, known=known, batch=len(images))


def _has(image: Request, field: str) -> bool:
    return getattr(image, field) is not None


def _each(what: str, given: Any, count: int) -> list[Any] | None:
    """Negative prompts, one an image; ids of one are an array."""
    if given is None:
        return None
    values = list(given) if is_list(given) and not isinstance(given, np.ndarray) else [given] * count
    if len(values) != count and len(values) != 1:
        raise RequestError(f"{len(values)} of {what} for {count} images: give one for all, or one an image")
    return values * (count if len(values) == 1 else 1)
