"""The tokenizer of a folder: as it is, converted, or with the end of prompts added; and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_text import save_sentence_model
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from arforge.export.text_encoders import word_tokenizer
from arforge.export.text_encoders.word_tokenizer import TEXTS, read_word_tokenizer
from arforge.runner.errors import ArforgeError, CheckpointError
from arforge.runner.text.tokenizer import TextTokenizer

END, VOCABULARY = 1, 224


def change(folder: Path, **fields: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_whole_tokenizer_is_taken_as_it_is(folder: Path) -> None:
    data, notes = read_word_tokenizer(folder, END, VOCABULARY)
    assert data == (folder / "tokenizer.json").read_bytes()
    assert notes == []


def test_a_sentencepiece_model_is_converted_to_transformers_ids(folder: Path, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    other = tmp_path / "spiece"
    other.mkdir()
    save_sentence_model(other)
    data, notes = read_word_tokenizer(other, END, VOCABULARY)
    assert notes == ["spiece.model: converted, since there is no tokenizer.json"]
    own = TextTokenizer(data, "x")
    for text in (*TEXTS, "a cat on the mat", "naïve & ½ 猫"):
        assert own.ids(text).tolist() == reference(text).input_ids
    assert sorted(path.name for path in other.iterdir()) == ["spiece.model"]


def test_prompts_end_where_the_file_did_not_end_them(folder: Path) -> None:
    before = TextTokenizer.open(folder / "tokenizer.json").ids("a cat on the mat")
    change(folder, post_processor=None)
    data, notes = read_word_tokenizer(folder, END, VOCABULARY)
    assert notes == ["tokenizer.json: ends prompts with </s> (id 1) now, which it did not"]
    assert TextTokenizer(data, "x").ids("a cat on the mat").tolist() == before.tolist()


def test_tokenizers_that_add_something_else_are_refused(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for template in ("</s> $A", "$A <pad>", "<pad> $A </s>"):
        tokens = [("<pad>", 0), ("</s>", 1)]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
        tokenizer.save(str(folder / "tokenizer.json"))
        wanted = r"makes \[.*\] of 'a picture', expected \[.*, 1\], which ends in the id 1: use the tokenizer that"
        with pytest.raises(CheckpointError, match=wanted):
            read_word_tokenizer(folder, END, VOCABULARY)


def test_tokenizers_of_other_vocabularies_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has ids up to 165, the text encoder a table of 100: use the tokenizer"):
        read_word_tokenizer(folder, END, 100)
    change(folder, post_processor=None)
    with pytest.raises(CheckpointError, match="has no token 99999, which ends a prompt: use the text encoder's own"):
        read_word_tokenizer(folder, 99999, VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "tokenizer.json is a Git LFS pointer",
        ),
        (b"<html><title>Sign in</title>", r"tokenizer.json is a web page \('Sign in'\)"),
        (b"{}", "tokenizer.json is no tokenizer that tokenizers"),
        (b"", "tokenizer.json is no tokenizer that tokenizers"),
    ],
)
def test_other_files_are_called_what_they_are(folder: Path, content: bytes, message: str) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_word_tokenizer(folder, END, VOCABULARY)


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json, nor a spiece.model: put the text encoder's tok"):
        read_word_tokenizer(tmp_path, END, VOCABULARY)


def test_damaged_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    whole = save_sentence_model(tmp_path).read_bytes()
    for content, message in (
        (whole[:300], r"cannot convert .*spiece.model \(.*\): download tokenizer.json too"),
        (b"", r"cannot convert .*spiece.model \(.*\): download tokenizer.json too"),
        (b"version https://git-lfs.github.com/spec/v1\n", "spiece.model is a Git LFS pointer"),
    ):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_word_tokenizer(tmp_path, END, VOCABULARY)


def test_a_conversion_that_reads_text_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sentence_model(tmp_path)
    monkeypatch.setattr(word_tokenizer, "TEXTS", ("a </s> picture",))  # which no conversion reads alike
    with pytest.raises(CheckpointError, match=r"converted, reads 'a </s> picture' in other ids: download"):
        read_word_tokenizer(tmp_path, END, VOCABULARY)


@pytest.mark.parametrize("package", ["transformers", "sentencepiece"])
def test_what_converts_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    save_sentence_model(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    wanted = "has spiece.model and no tokenizer.json: download tokenizer.json too, or install what converts it"
    with pytest.raises(CheckpointError, match=wanted):
        read_word_tokenizer(tmp_path, END, VOCABULARY)


def test_reading_needs_tokenizers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ArforgeError, match=r"needs tokenizers: pip install 'arforge\[text\]'"):
        read_word_tokenizer(folder, END, VOCABULARY)
