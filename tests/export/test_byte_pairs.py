"""A table of byte pairs becomes a `tokenizer.json` of the same ids, and damaged tables are named."""

from __future__ import annotations

import base64
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import regex
from tokenizers import Tokenizer

from arforge.export.byte_pairs import PATTERN, converted, read_ranks
from arforge.export.model_folder import read_words
from arforge.runner.errors import CheckpointError

CORPUS = "the cat and the other cat thought that the weather there was better than the theatre's 1990 ééé 中文中文 !!! "
TEXTS = (
    "the theatre's cat", "THE weather, there: 90*90", "  two  blanks\n\nand lines\t", "café e\u0301 中文中", "!!!! ?!",
    "x", "don't they'RE", "a<|image token|>b", "😀 thethethe",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """All bytes in an order of their own, then 40 pairs that a corpus has most."""
    found = {bytes([(byte * 7 + 33) % 256]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in piece.encode()] for piece in regex.findall(PATTERN, CORPUS * 2)]
    while len(found) < 256 + 40:
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        (first, second), _ = max(counts.items(), key=lambda item: (item[1], item[0]))
        found.setdefault(first + second, len(found))
        words = [joined(word, {first + second: 0}) for word in words]
    return found


def joined(parts: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Neighbours that make a token become it, those of the lowest rank first, until none do."""
    while len(parts) > 1:
        pairs = [(ranks[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not pairs:
            break
        _, at = min(pairs)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts


def save(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_pairing_by_rank(tmp_path: Path, ranks: dict[bytes, int], text: str) -> None:
    made = Tokenizer.from_str(converted(save(tmp_path / "emu3.tiktoken", ranks)).decode())
    expected = []
    for piece in regex.findall(PATTERN, unicodedata.normalize("NFC", text)):
        whole = piece.encode()
        parts = [whole] if whole in ranks else joined([bytes([byte]) for byte in whole], ranks)
        expected += [ranks[part] for part in parts]
    assert made.encode(text, add_special_tokens=False).ids == expected


def test_a_folder_with_a_table_alone_has_words(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    save(tmp_path / "emu3.tiktoken", ranks)
    words = read_words(tmp_path, 400)
    assert words.data is not None
    assert len(words.encode("90*90")) == 5
    assert words.notes == ("emu3.tiktoken: converted, since there is no tokenizer.json",)
    assert words.reserved([(350, 399)]) == ((350, 399),)


def test_damaged_tables_are_named(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    path = save(tmp_path / "emu3.tiktoken", ranks)
    whole = path.read_bytes()
    for data, message in (
        (whole[:2000], "not a whole table of byte pairs|is no token and id"),
        (whole + b"YWI= x\n", f"line {len(ranks) + 1}, is no token and id"),
        (whole + b"YWI= 9999\n", "not a whole table"),
        (b"<html><body>login</body></html>", "line 1, is no token and id .*emu3.tiktoken is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "emu3.tiktoken is .*Git LFS"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            read_ranks(path)
