"""A `tokenizer.json` of a table of byte pairs in tiktoken's layout, as Emu3-Gen's folder has one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from arforge.export.file_kind import text_kind, text_of
from arforge.runner.errors import CheckpointError
from arforge.runner.json_file import read_small
from arforge.runner.optional import needed

MAX_BYTES = 1 << 25
MAX_TOKEN = 256  # bytes
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Emu3 cuts a text into pieces, whose bytes are then paired; digits stand alone."""


def converted(path: Path) -> bytes:
    """The `tokenizer.json` of a table; it knows the words of texts alone, not the special ones.

    Raises CheckpointError if the file is no such table; ArforgeError if the library that writes it is missing.
    """
    with needed("reading a prompt", "text"):
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    ranks = read_ranks(path)
    letters = byte_letters()
    vocabulary = {spelt(token, letters): rank for token, rank in ranks.items()}
    merges = [(spelt(first, letters), spelt(second, letters)) for first, second in pairs(ranks)]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    made.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return str(made.to_str()).encode()


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a table, a line each: base64 of its bytes and its id. All single bytes must be among them."""
    data = read_small(path, MAX_BYTES, CheckpointError)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            word, rank = line.split()
            token = base64.b64decode(word, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            text = text_of(data[:1024])
            what = f": {path} is {text_kind(text)}" if number == 1 and text is not None else ""
            raise CheckpointError(
                f"{path}, line {number}, is no token and id of a table of byte pairs: download it again{what}"
            ) from None
        if not 0 < len(token) <= MAX_TOKEN:
            raise CheckpointError(f"{path}, line {number}: a token of {len(token)} bytes, expected 1 to {MAX_TOKEN}")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path} is not a whole table of byte pairs: download it again")
    return ranks


def pairs(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All two tokens that make another, in the order in which they are joined."""
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(first, second) for first, second in splits if first in ranks and second in ranks]
        found.extend(sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])))
    return found


def spelt(token: bytes, letters: Sequence[str]) -> str:
    return "".join(letters[byte] for byte in token)


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level tokenizer: its own where it prints, others from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]
