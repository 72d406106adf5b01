"""What a Triton model takes, and how arrays and parameters become a request."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arforge.runner import Request, RequestError, open_bundle
from arforge.serving.triton.inputs import PARAMETERS, Call, call_of, inputs_of, outputs_of

SEED = np.array([[3]], np.uint64)


def call(arrays: dict[str, Any], stream: bool = False, **parameters: Any) -> Call:
    return call_of({"seed": SEED, **arrays}, json.dumps(parameters), stream=stream)


def names(bundle: Path, prompts: str = "bytes") -> list[tuple[str, str, tuple[int, ...], bool]]:
    return [(one.name, one.kind, one.dims, one.optional) for one in inputs_of(open_bundle(bundle), prompts)]


def test_a_model_takes_what_its_kind_is_asked_for_by(bundle: Path, arpg_bundle: Path, text_bundle: Path) -> None:
    seed = ("seed", "UINT64", (1,), False)
    assert names(bundle) == [("class", "INT64", (1,), False), seed]
    assert names(arpg_bundle) == [("class", "INT64", (1,), False), seed, ("known", "INT64", (4, 6), True)]
    width = open_bundle(text_bundle).model.condition.width  # type: ignore[union-attr]
    assert names(text_bundle) == [("features", "FP32", (-1, width), False), seed]


def test_of_several_ways_to_ask_each_is_optional(ids_bundle: Path, words_bundle: Path) -> None:
    ids, seed = ("ids", "INT64", (-1,), True), ("seed", "UINT64", (1,), False)
    assert names(ids_bundle) == [("prompt", "STRING", (1,), True), ids, seed]
    assert names(ids_bundle, "uint8") == [("prompt", "UINT8", (-1,), True), ids, seed]
    assert [one[0] for one in names(words_bundle)] == ["prompt", "features", "seed"]


def test_a_stream_says_how_far_it_is(bundle: Path, par_bundle: Path) -> None:
    assert [one.name for one in outputs_of(open_bundle(bundle), stream=False)] == ["image", "tokens"]
    streamed = [one.name for one in outputs_of(open_bundle(par_bundle), stream=True)]
    assert streamed == ["tokens", "index", "done", "steps"]  # no image tokenizer


def test_arrays_become_a_request() -> None:
    many = {"class": np.array([[7], [8]]), "seed": np.array([[3], [2**64 - 1]], np.uint64)}
    made = call(many, schedule="zipar:4", guidance=2, greedy=False, triton_trace="x")
    assert made == Call(Request([7, 8], seeds=[3, 2**64 - 1], schedule="zipar:4", guidance=2, greedy=False))
    texts = np.array([[b"a cat"], ["a d\u00f6g"]], object)
    assert call({"prompt": texts, "seed": many["seed"]}).request.prompts == ["a cat", "a d\u00f6g"]
    padded = np.frombuffer("a d\u00f6g".encode() + b"\0\0", np.uint8)[None]
    assert call({"prompt": padded}).request.prompts == ["a d\u00f6g"]
    (ids,) = call({"ids": np.array([[4, 9, -1, -1]])}).request.ids or []
    np.testing.assert_array_equal(ids, [4, 9])
    (features,) = call({"features": np.ones((1, 3, 5), np.float32)}).request.features or []
    assert (features.dtype, features.shape) == (np.float32, (3, 5))
    known = call({"class": SEED, "known": np.full((1, 2, 3), -1)}).request.known
    assert known is not None
    assert known.shape == (1, 2, 3)


def test_previews_are_a_streams() -> None:
    asked = {"class": np.array([[7]])}
    assert call(asked, stream=True).previews == 16
    assert call(asked, stream=True, previews=0).previews == 0
    assert call(asked, stream=True, previews=4, undecided="grey") == Call(Request([7], seeds=[3]), 4, "grey")
    for wrong, message in (
        ({"previews": -1}, "steps between previews -1|previews -1 is out of range"),
        ({"previews": 1.5}, "parameter previews is 1.5: give int"),
        ({"undecided": "black"}, "undecided cells as 'black' are unknown"),
    ):
        with pytest.raises(RequestError, match=message):
            call(asked, stream=True, **wrong)
    with pytest.raises(RequestError, match="parameter 'previews' is unknown"):
        call(asked, previews=4)


@pytest.mark.parametrize(
    ("arrays", "parameters", "message"),
    [
        ({}, {}, "nothing to draw is given: give one of the model's inputs class, prompt, features, ids"),
        ({"ids": SEED, "prompt": SEED}, {}, "prompt and ids is given: give one"),
        ({"class": SEED}, {"seed": 3}, "parameter 'seed' is unknown: use schedule, guidance"),
        ({"class": SEED}, {"top_k": True}, "parameter top_k is True: give int"),
        ({"class": SEED}, {"guidance": "2"}, "parameter guidance is '2': give int or float"),
        ({"prompt": np.array([[0xC3, 0x28]], np.uint8)}, {}, "a prompt is no UTF-8 .invalid continuation byte"),
        ({"prompt": np.array([[b"\xff"]], object)}, {}, "a prompt is no UTF-8 .invalid start byte at byte 0"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(arrays, **parameters)


def test_every_parameter_is_a_field_of_a_request() -> None:
    assert set(PARAMETERS) <= {field.name for field in fields(Request)}
