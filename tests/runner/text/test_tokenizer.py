"""Ids of prompts, against transformers' own tokenizer of the same folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from arforge.runner import ArforgeError, BundleError, RequestError
from arforge.runner.text.tokenizer import TextTokenizer, guarded

PROMPTS = [
    "a cat on the mat",
    "  Two  cats,\ta dog;\nand 3 mats!  ",
    "naïve café: “fish” & chips – 50 %",
    "ﬁne ½ ① ＡＢＣ full－width",
    "猫と犬 кот 고양이 😀👩‍🚀",
    "<b>not markup here</b> & a < b > c",
    "\x00\x7f\u200b\u202e",
    "e\u0301 vs é",
    "x",
    "a" * 300,
]


@pytest.fixture(scope="module")
def opened(t5_folder: Path) -> TextTokenizer:
    return TextTokenizer.open(t5_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def reference(t5_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(t5_folder)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_transformers(opened: TextTokenizer, reference: Any, prompt: str) -> None:
    ids = opened.ids(prompt)
    assert ids.dtype == np.int64
    assert ids.tolist() == reference(prompt).input_ids
    assert ids[-1] == 1


@pytest.mark.parametrize("slots", [2, 5, 12])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_truncated_prompts_are_those_of_transformers_and_end_as_others(
    opened: TextTokenizer, reference: Any, prompt: str, slots: int
) -> None:
    ids = opened.ids(prompt, slots, truncate=True)
    assert ids.tolist() == reference(prompt, max_length=slots, truncation=True).input_ids
    assert ids.size <= slots
    assert ids[-1] == 1


def test_prompts_that_fit_are_not_cut_and_longer_ones_are_refused(opened: TextTokenizer) -> None:
    whole = opened.ids("a cat on the mat")
    np.testing.assert_array_equal(opened.ids("a cat on the mat", whole.size), whole)
    wanted = (
        f"^the prompt 'a cat on the mat' has {whole.size} tokens, the model has room for {whole.size - 1}: shorten it, "
        r"or pass truncate=True \(--truncate\) to leave out its end$"
    )
    with pytest.raises(RequestError, match=wanted):
        opened.ids("a cat on the mat", whole.size - 1)


@pytest.mark.parametrize(
    ("prompt", "token"),
    [("a </s> cat", "</s>"), ("<pad>", "<pad>"), ("x<extra_id_7>", "<extra_id_7>"), ("＜pad＞", "<pad>")],
)
def test_special_tokens_are_refused_where_the_vocabulary_reads_them_as_pieces(
    opened: TextTokenizer, prompt: str, token: str
) -> None:
    with pytest.raises(RequestError, match=f"holds {token}, no word to the model: leave it out"):
        opened.ids(prompt)


def test_the_unknown_words_name_is_an_unknown_word(opened: TextTokenizer) -> None:
    assert opened.ids("a <unk> 猫").tolist().count(2) == 2


def test_special_tokens_are_words_where_the_tokenizer_can_read_them_so() -> None:
    vocabulary = {letter: number for number, letter in enumerate("</s>abc ")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 8)])
    assert tokenizer.encode("a</s>b").ids == [4, 8, 5, 8]
    own = TextTokenizer(tokenizer.to_str().encode(), "x")
    assert own.ids("a</s>b").tolist() == [4, 0, 1, 2, 3, 5, 8]
    assert own.ids("a</s>b", 3, truncate=True).tolist() == [4, 0, 8]


@pytest.mark.parametrize("prompt", ["", " \n", "cat \ud800", 7])
def test_what_is_no_prompt_is_refused(opened: TextTokenizer, prompt: Any) -> None:
    with pytest.raises(RequestError):
        opened.ids(prompt)


def test_settings_of_the_file_neither_cut_nor_pad(t5_folder: Path, opened: TextTokenizer) -> None:
    tokenizer = Tokenizer.from_file(str(t5_folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    assert len(tokenizer.encode("a cat on the mat").ids) == 50
    own = TextTokenizer(tokenizer.to_str().encode(), "x")
    np.testing.assert_array_equal(own.ids("a cat on the mat"), opened.ids("a cat on the mat"))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"x" * 100, b'{"version": "1.0", "model": {}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    wanted = r"tokenizer.json is no tokenizer that tokenizers [\d.]+ reads \(.*\): download it again, or update"
    with pytest.raises(BundleError, match=wanted):
        TextTokenizer.open(tmp_path / "tokenizer.json")


def test_damaged_tokenizers_are_refused_or_read(t5_folder: Path) -> None:
    value = json.loads((t5_folder / "tokenizer.json").read_bytes())
    damages: list[tuple[str, Any]] = [
        ("vocab", []),
        ("vocab", [["a", 1]]),
        ("vocab", [["a", 0.0]]),
        ("unk_id", 10**9),
        ("unk_id", -1),
        ("unk_id", None),
        ("type", "BPE"),
        ("unk_id", 2**63),
        ("type", "Nonsense"),
    ]
    changed = [{**value, "model": {**value["model"], field: damage}} for field, damage in damages]
    changed += [{**value, "normalizer": {"type": kind}} for kind in ("Precompiled", "Replace")]
    template = value["post_processor"]
    changed.append({**value, "post_processor": {**template, "special_tokens": {}}})  # which the library panics at
    changed.append({**value, "post_processor": {**template, "single": []}})
    for content in changed:
        try:
            TextTokenizer(json.dumps(content).encode(), "x").ids("a cat 猫", 4, truncate=True)
        except ArforgeError as error:
            assert str(error)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_stops_a_program_is_no_fault_of_the_library(kind: type[BaseException]) -> None:
    with pytest.raises(kind), guarded(BundleError, "x", "y"):
        raise kind


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, t5_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ArforgeError, match=r"^reading a prompt needs tokenizers: pip install 'arforge\[text\]'$"):
        TextTokenizer.open(t5_folder / "tokenizer.json")
