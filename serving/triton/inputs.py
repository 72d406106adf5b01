"""What a Triton model of a bundle takes and gives, and how that becomes a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition
from arforge.runner.canvas import UNKNOWN
from arforge.runner.errors import RequestError
from arforge.runner.preview import UNDECIDED
from arforge.runner.request import Request, whole

Array = NDArray[Any]

PROMPTS = ("bytes", "uint8")  # how prompts in words come in
ASKED = {"class": "classes", "prompt": "prompts", "features": "features", "ids": "ids"}  # inputs: fields of a Request
PARAMETERS: dict[str, tuple[type, ...]] = {
    "schedule": (str,),
    "guidance": (int, float),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "greedy": (bool, int),
    "captions": (str,),
    "truncate": (bool, int),
    "unconditional": (str,),
    "negative": (str,),
    "prefill": (str,),
}
OF_PREVIEWS: dict[str, tuple[type, ...]] = {"previews": (int,), "undecided": (str,)}
TRITONS_OWN = "triton_"  # how parameters begin that are not for the model
USUAL_PREVIEWS = 16  # steps between partial images


@dataclass(frozen=True)
class Tensor:
    """An input or output, without the dimension of the images."""

    name: str
    kind: str  # as in config.pbtxt, without TYPE_
    dims: tuple[int, ...]  # -1: any
    optional: bool = False


@dataclass(frozen=True)
class Call:
    """A request of Triton's as one of the runner's."""

    request: Request
    previews: int = 0  # steps between partial images; 0: none
    undecided: str = UNDECIDED[0]


def inputs_of(bundle: Bundle, prompts: str = PROMPTS[0]) -> list[Tensor]:
    """A seed an image, and what images are asked for by. `prompts`: one of PROMPTS."""
    model, condition = bundle.model, bundle.model.condition
    seed = Tensor("seed", "UINT64", (1,))
    if isinstance(condition, ClassCondition):
        asked = [Tensor("class", "INT64", (1,))]
    else:
        words = Tensor("prompt", "STRING", (1,)) if prompts == "bytes" else Tensor("prompt", "UINT8", (-1,))
        encoder = any(graph.name == "text" for graph in bundle.graphs)
        features = isinstance(condition, FeaturesCondition)
        asked = [words] if bundle.text_tokenizer is not None and (encoder or not features) else []
        asked += [Tensor("features", "FP32", (-1, condition.width))] if isinstance(condition, FeaturesCondition) else []
        asked += [] if features else [Tensor("ids", "INT64", (-1,))]
    if len(asked) > 1:
        asked = [Tensor(one.name, one.kind, one.dims, optional=True) for one in asked]
    known = [Tensor("known", "INT64", model.grid, optional=True)] if model.order == "random" else []
    return [*asked, seed, *known]


def outputs_of(bundle: Bundle, *, stream: bool) -> list[Tensor]:
    """Images and their tokens; of a stream, also how far they are, and which of the request's they are."""
    images = [] if bundle.image_tokenizer is None else [Tensor("image", "UINT8", (-1, -1, 3))]
    tokens = [Tensor("tokens", "INT64", (-1,))]
    progress = [Tensor(name, "INT64", (1,)) for name in ("index", "done", "steps")]
    return images + tokens + (progress if stream else [])


def call_of(arrays: Mapping[str, Array], parameters: str, *, stream: bool) -> Call:
    """The call of one request: its inputs by name, each [images, …], and its parameters as JSON.

    Trailing zeros of prompts as bytes and trailing -1 of ids are padding. Raises RequestError for what does not fit.
    """
    given = [name for name in ASKED if name in arrays]
    if len(given) != 1:
        there = " and ".join(given) if given else "nothing to draw"
        raise RequestError(f"{there} is given: give one of the model's inputs {', '.join(ASKED)}")
    settings = settings_of(parameters, stream=stream)
    previews = settings.pop("previews", USUAL_PREVIEWS if stream else 0)
    undecided = settings.pop("undecided", UNDECIDED[0])
    if previews:
        whole("previews", previews, 1, 2**30)
    if undecided not in UNDECIDED:
        raise RequestError(f"undecided cells as {undecided!r} are unknown: use one of {', '.join(UNDECIDED)}")
    (name,) = given
    asked: dict[str, Any] = {ASKED[name]: READ[name](arrays[name])}
    if "known" in arrays:
        settings["known"] = np.array(arrays["known"], np.int64)
    return Call(Request(**asked, seeds=arrays["seed"].reshape(-1).tolist(), **settings), previews, undecided)


def settings_of(parameters: str, *, stream: bool) -> dict[str, Any]:
    """A request's parameters, by name. Raises RequestError for one that is unknown, or of another kind."""
    known = {**PARAMETERS, **(OF_PREVIEWS if stream else {})}
    found: dict[str, Any] = {}
    for name, value in json.loads(parameters or "{}").items():
        if name.startswith(TRITONS_OWN):
            continue
        if name not in known:
            raise RequestError(f"parameter {name!r} is unknown: use {', '.join(known)}")
        if not isinstance(value, known[name]) or (isinstance(value, bool) and bool not in known[name]):
            kinds = " or ".join(kind.__name__ for kind in known[name])
            raise RequestError(f"parameter {name} is {value!r}: give {kinds}")
        found[name] = value
    return found


def _texts(array: Array) -> list[str]:
    """Of TYPE_STRING, an object a text; or UTF-8 bytes, a row a text."""
    rows = array.reshape(len(array), -1)
    raw = [bytes(row).rstrip(b"\0") for row in rows] if rows.dtype == np.uint8 else [_bytes(row[0]) for row in rows]
    try:
        return [one.decode() for one in raw]
    except UnicodeDecodeError as error:
        raise RequestError(f"a prompt is no UTF-8 ({error.reason} at byte {error.start}): encode it so") from None


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _ids(array: Array) -> list[NDArray[np.int64]]:
    """Whole prompts, without the padding behind them."""
    rows = array.reshape(len(array), -1)
    ends = [int((row != UNKNOWN).nonzero()[0].max(initial=-1)) + 1 for row in rows]
    return [np.array(row[:end], np.int64) for row, end in zip(rows, ends, strict=True)]


READ = {
    "class": lambda array: array.reshape(-1).tolist(),
    "prompt": _texts,
    "features": lambda array: [np.array(one, np.float32) for one in array],
    "ids": _ids,
}
