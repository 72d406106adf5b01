"""OpenAI's images API as types: what a client may send, as a request for the runner."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from arforge.runner.errors import RequestError
from arforge.runner.request import MAX_SEED, Request
from arforge.serving.limits import Limits
from arforge.serving.pictures import Format
from arforge.serving.served import Served

MAX_DRAWN_SEED = 2**53 - 1  # that JavaScript can hold


class Generation(BaseModel):
    """A request for images. Fields that OpenAI's API has and this one need not act on are taken and left alone."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: str
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Format = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: int = Field(0, ge=0)

    # arforge's own
    seed: int | None = Field(None, ge=0, le=MAX_SEED)  # of the first image, the others count on; None: drawn
    schedule: str | None = None
    guidance: float | None = Field(None, validation_alias=AliasChoices("guidance", "guidance_scale"))
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    negative_prompt: str | None = None
    captions: str | None = None
    truncate: bool = False
    unconditional: str | None = None
    prefill: str | None = None
    undecided: Literal["nearest", "grey"] = "nearest"  # cells of partial images
    timeout: float | None = Field(None, gt=0)  # seconds

    # of OpenAI's models alone
    user: str | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    input_fidelity: str | None = None


def seeds_of(asked: Generation) -> list[int]:
    """One an image: from the seed that is given on, or from one that is drawn, which the answer names."""
    first = secrets.randbelow(MAX_DRAWN_SEED - asked.n) if asked.seed is None else asked.seed
    return [(first + image) % (MAX_SEED + 1) for image in range(asked.n)]


def check_limits(asked: Generation, limits: Limits) -> None:
    """Raise RequestError for more than the service lets a request ask for."""
    if asked.n > limits.images:
        raise RequestError(f"n {asked.n} is more than this service's limit of {limits.images} images a request")
    for name in ("prompt", "negative_prompt"):
        if len(getattr(asked, name) or "") > limits.prompt:
            raise RequestError(f"{name} is longer than this service's limit of {limits.prompt} characters")
    if asked.partial_images > limits.partial_images:
        raise RequestError(f"partial_images {asked.partial_images} is more than the limit of {limits.partial_images}")


def request_of(asked: Generation, served: Served, limits: Limits, known: dict[str, Any] | None = None) -> Request:
    """What the runner is asked for; `known`: in place of what the size says. Raises RequestError."""
    check_limits(asked, limits)
    return Request(
        **served.subjects(asked.prompt, asked.n),
        seeds=seeds_of(asked),
        schedule=asked.schedule,
        guidance=asked.guidance,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        greedy=asked.greedy,
        negative=asked.negative_prompt,
        captions=asked.captions,
        truncate=asked.truncate,
        unconditional=asked.unconditional,
        prefill=asked.prefill,
        **(served.known(served.grid_of(asked.size, limits)) if known is None else known),
    )


def parameters_of(asked: Generation, request: Request, served: Served, image: int) -> dict[str, Any]:
    """What makes that image again: the metadata of its file."""
    assert request.seeds is not None
    settings = {
        "schedule": request.schedule or served.bundle.default_schedule,
        "guidance": served.bundle.sampler.guidance if request.guidance is None else request.guidance,
        "temperature": served.bundle.sampler.temperature if request.temperature is None else request.temperature,
        "top_k": served.bundle.sampler.top_k if request.top_k is None else request.top_k,
        "top_p": served.bundle.sampler.top_p if request.top_p is None else request.top_p,
        "greedy": request.greedy,
        "negative_prompt": request.negative,
        "captions": request.captions,
        "truncate": request.truncate or None,
        "unconditional": request.unconditional,
        "prefill": request.prefill,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return {"model": served.name, "prompt": asked.prompt, "seed": request.seeds[image], **given}
