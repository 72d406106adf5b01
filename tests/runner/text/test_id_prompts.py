"""Prompts of models that read ids: templates, what stands for no prompt, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from arforge.runner import RequestError
from arforge.runner.bundle import IdsCondition
from arforge.runner.request import Request
from arforge.runner.text.id_prompts import IdPrompts, IdTemplate

WORDS = ["a", "red", "blue", "cat", "please", ":", "<unk>", "IMG", "not"]
CONDITION = IdsCondition(
    slots=12,
    vocabulary=100,
    prefix=(50, 51),
    before="please : ",
    after=" :",
    stripped=False,
    suffix=(60, 61, 62),
    start=2,
    padding=1,
    reserved=((7, 7), (50, 99)),
    negative=(50, 9, 61, 62),
    unconditional="image",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words and two added tokens, of which one is special."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken("<|User|>", special=True)])
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made.save(str(path))
    return path


def template(condition: IdsCondition = CONDITION, tokenizer: Path | None = None) -> IdTemplate:
    facts = SimpleNamespace(condition=condition, family="tiny")
    bundle: Any = SimpleNamespace(model=facts, text_tokenizer=tokenizer and "words", root="b", path=lambda _: tokenizer)
    return IdTemplate(bundle)


def made(given: IdTemplate, by: str, asked: Any, guided: bool = True, **settings: Any) -> IdPrompts:
    return given.prompts(Request(**{by: asked}, **settings), by, asked, guided)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def lists(prompts: list[np.ndarray]) -> list[list[int]]:
    assert all(one.dtype == np.int64 for one in prompts)
    return [one.tolist() for one in prompts]


def test_a_text_stands_in_its_template(tokenizer: Path) -> None:
    found = made(template(tokenizer=tokenizer), "prompts", ["a red cat"])
    assert lists(found.conditional) == [[50, 51, 4, 5, 0, 1, 3, 5, 60, 61, 62]]
    assert lists(found.unconditional) == [[61, 62]]
    assert found.together is None


def test_blanks_around_a_text_go_where_the_model_has_none(tokenizer: Path) -> None:
    seen: list[str] = []

    class Spy(IdTemplate):
        def _words(self, text: str, shown_as: str) -> Any:
            seen.append(text)
            return super()._words(text, shown_as)

    for stripped in (False, True):
        spy = Spy(template(replace(CONDITION, stripped=stripped), tokenizer)._bundle)
        spy.prompts(Request(prompts=[" a cat\n"]), "prompts", [" a cat\n"], True)
    assert seen == ["please :  a cat\n :", "please : a cat :"]


def test_ids_are_whole_prompts_and_get_the_images_beginning_where_they_lack_it() -> None:
    found = made(template(), "ids", [ids(50, 3, 61, 62), ids(50, 3), ids(61, 62), np.array([5, 61], np.int32)])
    assert lists(found.conditional) == [[50, 3, 61, 62], [50, 3, 61, 62], [61, 62, 61, 62], [5, 61, 61, 62]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[61, 62], [61, 62]]),
        ({"unconditional": "image"}, [[61, 62], [61, 62]]),
        ({"unconditional": "padded"}, [[50, 1, 1, 61, 62], [50, 61, 62]]),
        ({"unconditional": "negative"}, [[50, 9, 61, 62]] * 2),
        ({"negative_ids": ids(8)}, [[8, 61, 62]] * 2),
        ({"negative_ids": [ids(8)]}, [[8, 61, 62]] * 2),
        ({"negative_ids": [ids(8), ids(9)], "unconditional": "negative"}, [[8, 61, 62], [9, 61, 62]]),
    ],
)
def test_what_unconditional_rows_see(settings: dict[str, Any], expected: list[list[int]]) -> None:
    found = made(template(), "ids", [ids(50, 3, 4), ids(50)], **settings)
    assert lists(found.conditional) == [[50, 3, 4, 61, 62], [50, 61, 62]]
    assert lists(found.unconditional) == expected


def test_a_negative_text_has_the_template_without_the_text_around(tokenizer: Path) -> None:
    given = template(tokenizer=tokenizer)
    for negative in ("not blue", ["not blue"]):
        found = made(given, "prompts", ["a cat", "a"], negative=negative)
        assert lists(found.unconditional) == [[50, 51, 8, 2, 60, 61, 62]] * 2


def test_without_guidance_nothing_is_needed_for_it() -> None:
    found = made(template(replace(CONDITION, negative=(), unconditional="negative")), "ids", [ids(50)], guided=False)
    assert lists(found.unconditional) == [[50, 61, 62]]


def test_a_bidirectional_prefill_leaves_out_what_begins_the_image() -> None:
    assert made(template(), "ids", [ids(50)], prefill="bidirectional").together == 2
    assert made(template(), "ids", [ids(50)], prefill="causal").together is None


def test_a_prompt_that_is_too_long_is_refused_or_cut_within_the_template(tokenizer: Path) -> None:
    given = template(tokenizer=tokenizer)
    text = "a red blue cat cat"
    with pytest.raises(RequestError, match=r"the prompt 'a red blue cat cat' has 8 tokens, the model has room for 7"):
        made(given, "prompts", [text])
    cut = made(given, "prompts", [text], truncate=True)
    assert lists(cut.conditional) == [[50, 51, 4, 5, 0, 1, 2, 3, 5, 60, 61, 62]]


@pytest.mark.parametrize(
    ("by", "asked", "settings", "message"),
    [
        ("prompts", "a cat", {}, "prompts must be a list of texts, not one text"),
        ("prompts", [""], {}, "the prompt is empty"),
        ("prompts", ["a IMG"], {}, "the prompt 'a IMG' spells the token 7, no word to the model: leave it out"),
        ("ids", [ids(100)], {}, "the ids: prompt 0 holds 100, the model's ids are 0 to 99"),
        ("ids", [ids(-1)], {}, "the ids: prompt 0 holds -1"),
        ("ids", [ids(*range(11))], {}, "the ids: prompt 0 has 13 tokens, the model has room for 1 to 12"),
        (
            "ids",
            [ids(1)],
            {"unconditional": "none"},
            "unconditional 'none' is unknown: use padded or image or negative",
        ),
        ("ids", [ids(1)], {"prefill": "both"}, "prefill 'both' is unknown: use causal or bidirectional"),
        ("ids", [ids(1)], {"negative": "a", "negative_ids": ids(1)}, "negative and negative_ids are given"),
        ("ids", [ids(1)], {"negative_ids": ids(1), "unconditional": "image"}, "leave one of them out"),
        ("ids", [ids(1)], {"negative_ids": [ids(1), ids(2)]}, "2 negative prompts for 1 images"),
        ("ids", [ids(1)], {"negative_ids": [ids(101)]}, "prompt 0 holds 101"),
    ],
)
def test_what_no_prompt_is_refused(
    tokenizer: Path, by: str, asked: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        made(template(tokenizer=tokenizer), by, asked, **settings)


def test_special_strings_in_a_text_are_words_or_refused_never_parsed(tokenizer: Path) -> None:
    with pytest.raises(RequestError, match="holds <unk>|no word to the model|spells the token"):
        made(template(replace(CONDITION, reserved=((6, 99),)), tokenizer), "prompts", ["a <|User|> cat"])


def test_what_a_bundle_lacks_is_said() -> None:
    with pytest.raises(RequestError, match="b has no tokenizer for prompts in words: export it from a folder that"):
        made(template(), "prompts", ["a cat"])
    with pytest.raises(RequestError, match="'padded': this model has no padding token: use 'image' or 'negative'"):
        made(template(replace(CONDITION, padding=None)), "ids", [ids(1)], unconditional="padded")
    with pytest.raises(RequestError, match="see a negative prompt, and the bundle has none: give one"):
        made(template(replace(CONDITION, negative=())), "ids", [ids(1)], unconditional="negative")
