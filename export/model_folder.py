"""What the folder of a model in the hub's layout says beside the weights: `config.json`, and the ids of its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arforge.export.byte_pairs import converted
from arforge.export.checkpoint_files import snapshot_of
from arforge.export.file_kind import read_head, text_kind, text_of
from arforge.runner.errors import CheckpointError
from arforge.runner.json_file import read_json, read_small
from arforge.runner.text.tokenizer import MAX_BYTES, TextTokenizer, guarded

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
BYTE_PAIRS = "emu3.tiktoken"
MAX_INTEGER = 2**24


@dataclass(frozen=True)
class Description:
    """A `config.json`, or an object inside it. Values that are null count as left out."""

    path: Path
    values: Mapping[str, Any]

    def part(self, *names: str) -> Description:
        """The first of these objects that is there; an empty one where none is."""
        for name in names:
            if isinstance(self.values.get(name), dict):
                return Description(self.path, self.values[name])
        return Description(self.path, {})

    def whole(self, name: str, usual: int | None = None) -> int:
        """A positive whole number. Raises CheckpointError for another value, or where nothing gives one."""
        value = self._value(name, usual)
        if not (type(value) is int and 0 < value < MAX_INTEGER):
            raise CheckpointError(f"{self.path}: {name} must be a positive whole number, not {value!r}")
        return value

    def number(self, name: str, usual: float) -> float:
        """A positive number. Raises CheckpointError for another value."""
        value = self._value(name, usual)
        if not (type(value) in (int, float) and value > 0):
            raise CheckpointError(f"{self.path}: {name} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, name: str, usual: bool) -> bool:
        value = self._value(name, usual)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {name} must be true or false, not {value!r}")
        return value

    def require(self, name: str, only: Any) -> None:
        """Raise CheckpointError if the value is there and another than the one that is supported."""
        value = self.values.get(name)
        if value is not None and value != only:
            raise CheckpointError(f"{self.path}: {name} is {value!r}: arforge exports models with {only!r} there")

    def _value(self, name: str, usual: Any) -> Any:
        value = self.values.get(name)
        if value is None and usual is None:
            raise CheckpointError(f"{self.path} lacks {name}: download it again")
        return usual if value is None else value


def folder_of(checkpoint: Path) -> Path:
    """The folder that a checkpoint is, or lies in; of a model in the hub's cache, its snapshot."""
    if not checkpoint.is_dir():
        return checkpoint.parent
    return snapshot_of(checkpoint) or checkpoint


def read_description(checkpoint: Path, model_types: tuple[str, ...]) -> Description | None:
    """What `config.json` beside a checkpoint says of it; None if there is none.

    Raises CheckpointError if it cannot be read, or is of a model that is none of `model_types`.
    """
    path = folder_of(checkpoint) / CONFIG
    if not path.is_file():
        return None
    text = text_of(read_head(path))
    if text is not None and text.strip() and not text.lstrip().startswith("{"):
        raise CheckpointError(f"{path} is {text_kind(text)}")
    values = read_json(path, CheckpointError)
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in model_types:
        raise CheckpointError(
            f"{path} is of the model type {found!r}, expected {' or '.join(model_types)}: name the folder of a model "
            "that arforge exports"
        )
    return Description(path, values)


@dataclass(frozen=True)
class Words:
    """The words of a vocabulary by their names, as far as a folder tells them."""

    ids: Mapping[str, int] = field(default_factory=dict)
    tokenizer: TextTokenizer | None = None
    data: bytes | None = None  # of a `tokenizer.json`
    notes: tuple[str, ...] = ()  # on what was missing, or made of something else

    def id(self, name: str, usual: int) -> int:
        return self.ids.get(name, usual)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without any that begin or end it."""
        assert self.tokenizer is not None
        with guarded(CheckpointError, f"{TOKENIZER} fails on {text!r}", "download it again"):
            return tuple(self.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)

    def reserved(self, others: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """First and last of the ids of words that stand for no text: those that the tokenizer adds, and `others`."""
        ranges = [(number, number) for number in self._added()] + list(others)
        joined: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = joined[-1][0], max(last, joined[-1][1])
            else:
                joined.append((first, last))
        return tuple(joined)

    def _added(self) -> list[int]:
        return [] if self.tokenizer is None else list(self.tokenizer.tokenizer.get_added_tokens_decoder())


def read_words(folder: Path, vocabulary: int) -> Words:
    """The words of a model's folder, by its `tokenizer.json` and what `tokenizer_config.json` lists.

    Without a `tokenizer.json` a table of byte pairs is converted. Raises CheckpointError if a file cannot be read, or
    has ids from `vocabulary` on; ArforgeError if the library that reads tokenizers is missing.
    """
    ids, notes = listed_words(folder / TOKENIZER_CONFIG), []
    path = folder / TOKENIZER
    if path.is_file():
        data = read_small(path, MAX_BYTES, CheckpointError)
        text = text_of(data[:1024])
        if text is not None and text.strip() and not text.lstrip().startswith("{"):
            raise CheckpointError(f"{path} is {text_kind(text)}")
    elif (folder / BYTE_PAIRS).is_file():
        path = folder / BYTE_PAIRS
        data = converted(path)
        notes.append(f"{BYTE_PAIRS}: converted, since there is no {TOKENIZER}")
    else:
        known = "listed" if ids else "published"
        missing = f"{folder.name} has no {TOKENIZER}: the bundle takes prompts in ids alone"
        return Words(ids, notes=(f"{missing}, and special words have their {known} ids",))
    tokenizer = TextTokenizer(data, str(path), CheckpointError)
    with guarded(CheckpointError, f"{path} fails", "download it again"):
        found = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    largest = max(found.values(), default=0)
    if largest >= vocabulary:
        raise CheckpointError(
            f"{path} has ids up to {largest}, the model a vocabulary of {vocabulary}: use the tokenizer that it was "
            "trained with"
        )
    return Words({**ids, **found}, tokenizer, data, tuple(notes))


def listed_words(path: Path) -> dict[str, int]:
    """The words that a `tokenizer_config.json` lists with their ids; none where it lists none, or is not there."""
    if not path.is_file():
        return {}
    values = read_json(path, CheckpointError)
    listed = values.get("added_tokens_decoder") if isinstance(values, dict) else None
    if not isinstance(listed, dict):
        return {}
    return {
        word["content"]: int(number)
        for number, word in listed.items()
        if number.isdecimal() and isinstance(word, dict) and isinstance(word.get("content"), str)
    }
