"""Features of prompts by a bundle's text encoder, against transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_text import SLOTS, WIDTH, features_model, text_bundle
from transformers import AutoTokenizer, T5EncoderModel

from arforge.runner import BundleError, EngineError, RequestError
from arforge.runner.bundle import Bundle, ClassCondition
from arforge.runner.errors import NumericsError
from arforge.runner.text import encoder as module
from arforge.runner.text.captions import clean
from arforge.runner.text.encoder import TextEncoder

PROMPTS = ["a cat on the mat", "Two dogs, a house!", "x", "a cat & a dog - 3 mats", "naïve café"]


@pytest.fixture
def encoder(texts: Bundle) -> Iterator[TextEncoder]:
    opened = TextEncoder(texts, threads=1)
    yield opened
    opened.close()


@torch.no_grad()
def padded(t5: T5EncoderModel, folder: Path, prompts: list[str]) -> list[np.ndarray[Any, Any]]:
    """As the authors do it: all prompts at once, each padded to the room that there is."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(prompts, max_length=SLOTS, padding="max_length", truncation=True, return_tensors="pt")
    features = t5(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
    return [row[: int(mask.sum())].numpy() for row, mask in zip(features, given.attention_mask, strict=True)]


@pytest.mark.parametrize("cleaning", [False, True])
def test_features_are_those_of_transformers_padded_batch(
    encoder: TextEncoder, t5: T5EncoderModel, t5_folder: Path, cleaning: bool
) -> None:
    found = encoder.features(PROMPTS, cleaning=cleaning)
    expected = padded(t5, t5_folder, [clean(text) if cleaning else text for text in PROMPTS])
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_prompts_features_depend_on_no_other(encoder: TextEncoder) -> None:
    together = encoder.features([*PROMPTS, *reversed(PROMPTS)], cleaning=False)
    for text, one, again in zip(PROMPTS, together, reversed(together), strict=False):
        alone = encoder.features([text], cleaning=False)[0]
        assert alone.tobytes() == one.tobytes() == again.tobytes()


def test_ids_give_the_features_of_their_prompts_without_a_tokenizer(encoder: TextEncoder, texts: Bundle) -> None:
    other = TextEncoder(replace(texts, text_tokenizer=None), threads=1)
    found = other.features_of_ids([ids.astype(np.int32) for ids in encoder.ids(PROMPTS, cleaning=True)])
    for one, expected in zip(found, encoder.features(PROMPTS, cleaning=True), strict=True):
        np.testing.assert_array_equal(one, expected)
    with pytest.raises(RequestError, match="has no text encoder"):
        TextEncoder(replace(texts, graphs=()), threads=1).features_of_ids([np.array([1])])


def test_equal_prompts_run_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", lambda self, ids: (runs.append(ids.size), run(self, ids))[1])
    found = encoder.features(["a cat", "A  cat", "a dog", "a cat"], cleaning=True)
    assert len(runs) == 2
    assert found[0] is found[1] is found[3]


def test_long_prompts_are_refused_or_truncated_as_transformers_does(
    encoder: TextEncoder, t5: T5EncoderModel, t5_folder: Path
) -> None:
    long = "a cat and a dog " * 20
    with pytest.raises(RequestError, match=f"tokens, the model has room for {SLOTS}: shorten it"):
        encoder.features(["a cat", long], cleaning=False)
    found = encoder.features([long], cleaning=False, truncate=True)[0]
    assert found.shape == (SLOTS, WIDTH)
    np.testing.assert_allclose(found, padded(t5, t5_folder, [long])[0], rtol=0, atol=1e-4)


def test_nothing_is_opened_before_the_first_prompt(texts: Bundle, tmp_path: Path) -> None:
    opened = TextEncoder(replace(texts, root=tmp_path))
    opened.close()
    assert opened.features is not None
    with pytest.raises(BundleError, match=r"cannot read .*tokenizer.json"):
        opened.features(["a cat"], cleaning=False)


def test_a_closed_encoder_opens_again(encoder: TextEncoder) -> None:
    before = encoder.features(["a cat"], cleaning=False)[0]
    encoder.close()
    np.testing.assert_array_equal(encoder.features(["a cat"], cleaning=False)[0], before)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a cat", "prompts must be a list of texts, not one text: put it into a list"),
        (["a cat", ""], "the prompt is empty: say what to paint"),
        (["a cat", 3], "a prompt must be text, not int"),
        (["@bob"], "nothing is left of the prompt '@bob' when it is cleaned: give it without cleaning"),
        (["x &lt;/s> </s>"], None),
    ],
)
def test_bad_prompts_are_refused_before_any_runs(
    encoder: TextEncoder, prompts: Any, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "_run", lambda self, ids: np.zeros((ids.size, WIDTH), np.float32))
    if message is None:  # markup of that kind is cleaned away
        assert len(encoder.features(prompts, cleaning=True)) == 1
        return
    monkeypatch.setattr(TextEncoder, "_run", lambda self, ids: pytest.fail("a prompt has run"))
    with pytest.raises(RequestError, match=f"^{message}$"):
        encoder.features(prompts, cleaning=True)


def test_no_prompts_have_no_features(encoder: TextEncoder) -> None:
    assert encoder.features([], cleaning=True) == []


def test_a_bundle_without_text_encoder_says_what_to_do(texts: Bundle) -> None:
    wanted = r"has no text encoder: export it with --text-encoder FOLDER, or give features$"
    for lacking in (replace(texts, graphs=()), replace(texts, text_tokenizer=None)):
        with pytest.raises(RequestError, match=wanted):
            TextEncoder(lacking).features(["a cat"], cleaning=False)
    classes = replace(texts.model, condition=ClassCondition(10, 32, 42))
    with pytest.raises(RequestError, match="this tiny model reads no features of prompts: class"):
        TextEncoder(replace(texts, model=classes)).features(["a cat"], cleaning=False)


def test_a_graph_of_another_model_is_refused(texts: Bundle) -> None:
    other = text_bundle(texts.root, list(texts.graphs), texts.text_tokenizer, features_model(width=48))
    wanted = r"text.onnx: features is float32 \[prompts, length, 32\], expected float32 \[prompts, length, 48\]: export"
    with pytest.raises(BundleError, match=wanted):
        TextEncoder(other).features(["a cat"], cleaning=False)


def test_ids_beyond_the_graphs_table_are_an_engines_error(encoder: TextEncoder) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime failed in the text encoder of"):
        encoder.features_of_ids([np.array([10**6])])


def test_features_that_are_not_finite_are_refused(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, outputs: list[str], feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
            return [np.full((1, feeds["ids"].shape[1], WIDTH), np.nan, np.float32)]

    monkeypatch.setattr(encoder, "_session", Session())
    with pytest.raises(NumericsError, match="gives features that are not finite"):
        encoder.features(["a cat"], cleaning=False)


def test_the_graph_is_the_one_of_that_name(texts: Bundle) -> None:
    assert module.GRAPH == "text"
    model = onnx.load(texts.path(texts.graphs[0].path), load_external_data=False)
    assert [value.name for value in model.graph.input] == ["ids", "mask"]
