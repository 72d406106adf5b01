"""Words to the ids that a text encoder, or a model itself, reads: a `tokenizer.json` in the layout of its library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import ArforgeError, BundleError, RequestError
from arforge.runner.json_file import read_small
from arforge.runner.optional import needed
from arforge.runner.text.prompt import check_prompt, shown

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 1 << 26
PANIC = "PanicException"  # of the binding, which has no name to import


class TextTokenizer:
    """Gives the ids of one prompt at a time. Threads may share it."""

    def __init__(self, data: bytes, name: str, error: type[ArforgeError] = BundleError) -> None:
        """`data`: of a `tokenizer.json`; `name`: of it, for messages.

        Raises `error` if the library cannot read it, and ArforgeError if that is missing.
        """
        with needed("reading a prompt", "text"):
            import tokenizers
        what = f"{name} is no tokenizer that tokenizers {tokenizers.__version__} reads"
        with guarded(error, what, "download it again, or update tokenizers"):
            self.tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_buffer(data)
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            self.tokenizer.encode_special_tokens = True  # what a user writes is words, whatever it looks like
            unknown = unknown_of(json.loads(data)["model"])
            self._special = {
                number: token.content
                for number, token in self.tokenizer.get_added_tokens_decoder().items()
                if token.special and unknown not in (number, token.content)
            }

    @classmethod
    def open(cls, path: Path) -> Self:
        """The tokenizer in a file. Raises BundleError if it is none, ArforgeError if its library is missing."""
        return cls(read_small(path, MAX_BYTES, BundleError), str(path))

    def ids(
        self, text: str, slots: int | None = None, *, truncate: bool = False, template: bool = True
    ) -> NDArray[np.int64]:
        """The ids of a prompt, int64 [n], with those that the tokenizer adds (its `template`), as one that ends it.

        `slots`: how many there may be; with `truncate` words at the end give way, not what the tokenizer adds. Raises
        RequestError for a prompt that `check_prompt` refuses, that is too long, or that spells a special token which
        this kind of tokenizer cannot read as words; BundleError for a tokenizer that fails.
        """
        check_prompt(text)
        failed = f"the tokenizer fails on the prompt {shown(text)}"
        with guarded(BundleError, failed, "export the bundle again with the text encoder's own tokenizer"):
            encoding = self.tokenizer.encode(text, add_special_tokens=template)
        ids = np.array(encoding.ids, np.int64)
        words = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        if not words.size:
            raise RequestError(f"the prompt {shown(text)} has no words: say what to paint")
        for number in ids[words].tolist():
            if number in self._special:
                raise RequestError(
                    f"the prompt {shown(text)} holds {self._special[number]}, no word to the model: leave it out"
                )
        if slots is None or ids.size <= slots:
            return ids
        if not truncate:
            raise RequestError(
                f"the prompt {shown(text)} has {ids.size} tokens, the model has room for {slots}: shorten it, or pass "
                "truncate=True (--truncate) to leave out its end"
            )
        added = ids.size - words.size
        return np.delete(ids, words[max(slots - added, 0) :])


@contextmanager
def guarded(kind: type[ArforgeError], what: str, do: str) -> Iterator[None]:
    """Around calls of the library: raises `kind` where it fails, also where it panics, which is no Exception."""
    try:
        yield
    except ArforgeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise kind(f"{what} ({reason}): {do}") from error


def unknown_of(model: dict[str, Any]) -> object:
    """The token, by id or by name, that stands for what a vocabulary lacks; None where nothing does."""
    return model.get("unk_id", model.get("unk_token"))
