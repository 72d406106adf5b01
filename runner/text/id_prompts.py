"""Prompts of models that read ids of a vocabulary of their own: the template around a text, what stands for none."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import Bundle, IdsCondition, Unconditional
from arforge.runner.errors import RequestError
from arforge.runner.request import Request, listed, truth
from arforge.runner.text.features_file import check_ids
from arforge.runner.text.prompt import check_prompt, check_prompts, shown
from arforge.runner.text.tokenizer import TextTokenizer

Ids = NDArray[np.int64]
"""A whole prompt, template included: (length)."""

UNCONDITIONAL = get_args(Unconditional)
PREFILL = ("causal", "bidirectional")


@dataclass(frozen=True)
class IdPrompts:
    """Those of several images, one an image."""

    conditional: list[Ids]
    unconditional: list[Ids]
    together: int | None  # all but the last ids of a prompt, as many as begin the image, see each other; None: causal


class IdTemplate:
    """Makes the prompts of a bundle's requests; its tokenizer is opened when the first text comes."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tokenizer: TextTokenizer | None = None

    def prompts(self, request: Request, by: str, asked: Sequence[Any], guided: bool) -> IdPrompts:
        """The prompts of a request's images. Raises RequestError for what the model does not take.

        `by`: "prompts" or "ids". `guided`: whether some image has unconditional rows.
        """
        condition = self.condition
        if by == "prompts":
            cut = truth("truncate", request.truncate)
            conditional = [self.of_text(text, truncate=cut) for text in check_prompts(asked)]
        else:
            conditional = self.of_ids(asked)
        prefill = word("prefill", request.prefill or "causal", PREFILL)
        together = condition.start if prefill == "bidirectional" else None
        unconditional = self._unconditional(request, conditional) if guided else conditional
        return IdPrompts(conditional, unconditional, together)

    def of_ids(self, given: Sequence[Any], where: str = "the ids") -> list[Ids]:
        """Whole prompts; the ids that begin the image are put behind those that lack them."""
        condition = self.condition
        start = np.array(condition.suffix[-condition.start :], np.int64)
        prompts = []
        for index, one in enumerate(check_ids(given, condition.slots, where)):
            if one.max() >= condition.vocabulary:
                raise RequestError(
                    f"{where}: prompt {index} holds {one.max()}, the model's ids are 0 to {condition.vocabulary - 1}"
                )
            ends = len(one) > len(start) and np.array_equal(one[-len(start) :], start)
            prompts.append(one if ends else np.concatenate([one, start]))
        return check_ids(prompts, condition.slots, where)

    def of_text(self, text: str, *, truncate: bool = False) -> Ids:
        """The prompt of a text that `check_prompt` has seen. `truncate`: whether the end of a long one gives way."""
        condition = self.condition
        text = text.strip() if condition.stripped else text
        room = condition.slots - len(condition.prefix) - len(condition.suffix)

        def tokens(letters: int) -> Ids:
            return self._words(condition.before + text[:letters] + condition.after, text)

        words = tokens(len(text))
        if len(words) > room and truncate:
            words = tokens(max(1, bisect_right(range(len(text)), room, key=lambda letters: len(tokens(letters))) - 1))
        if len(words) > room:
            raise RequestError(
                f"the prompt {shown(text)} has {len(words)} tokens, the model has room for {room}: shorten it, or pass "
                "truncate=True (--truncate) to leave out its end"
            )
        return self._templated(words)

    @property
    def condition(self) -> IdsCondition:
        condition = self._bundle.model.condition
        assert isinstance(condition, IdsCondition)
        return condition

    def close(self) -> None:
        self._tokenizer = None

    def _unconditional(self, request: Request, conditional: list[Ids]) -> list[Ids]:
        condition = self.condition
        negative = self._negative(request, len(conditional))
        usual = condition.unconditional if negative is None else "negative"
        kind = word("unconditional", request.unconditional or usual, UNCONDITIONAL)
        if negative is not None and kind != "negative":
            raise RequestError(f"a negative prompt is given, and unconditional {kind!r}: leave one of them out")
        start = condition.start
        if kind == "image":
            return [one[-start:] for one in conditional]
        if kind == "padded":
            if condition.padding is None:
                raise RequestError("unconditional 'padded': this model has no padding token: use 'image' or 'negative'")
            return [padded(one, condition.padding, start) for one in conditional]
        if negative is None and not condition.negative:
            raise RequestError(
                "unconditional rows see a negative prompt, and the bundle has none: give one (--negative TEXT or "
                "--negative-ids FILE), or ask for another kind (--unconditional)"
            )
        return negative or [np.array(condition.negative, np.int64)] * len(conditional)

    def _negative(self, request: Request, images: int) -> list[Ids] | None:
        """The request's own negative prompts, one an image; None where it has none."""
        if request.negative is not None and request.negative_ids is not None:
            raise RequestError("negative and negative_ids are given: give one of them")
        if request.negative is not None:
            texts = [request.negative] if isinstance(request.negative, str) else listed("negative", request.negative)
            found = [self._templated(self._words(check_prompt(text), text)) for text in texts]
        elif request.negative_ids is not None:
            given = request.negative_ids
            given = [given] if isinstance(given, np.ndarray) else listed("negative_ids", given)
            found = self.of_ids(given, "the negative ids")
        else:
            return None
        if len(found) not in (1, images):
            raise RequestError(f"{len(found)} negative prompts for {images} images: give one for all, or one an image")
        return check_ids(found * (images if len(found) == 1 else 1), self.condition.slots, "the negative prompts")

    def _templated(self, words: Ids) -> Ids:
        condition = self.condition
        return np.concatenate([condition.prefix, words, condition.suffix]).astype(np.int64)

    def _words(self, text: str, shown_as: str) -> Ids:
        """The ids of a text alone. Raises RequestError if it spells what is no text to the model."""
        ids = self._opened().ids(text, template=False)
        for first, last in self.condition.reserved:
            if (wrong := ids[(first <= ids) & (ids <= last)]).size:
                raise RequestError(
                    f"the prompt {shown(shown_as)} spells the token {wrong[0]}, no word to the model: leave it out"
                )
        return ids

    def _opened(self) -> TextTokenizer:
        if self._tokenizer is None:
            if self._bundle.text_tokenizer is None:
                raise RequestError(
                    f"{self._bundle.root} has no tokenizer for prompts in words: export it from a folder that holds "
                    "tokenizer.json, or give ids"
                )
            self._tokenizer = TextTokenizer.open(self._bundle.path(self._bundle.text_tokenizer))
        return self._tokenizer


def padded(prompt: Ids, padding: int, start: int) -> Ids:
    """The prompt with all ids replaced but the first and those that begin the image."""
    result = prompt.copy()
    result[1 : len(prompt) - start] = padding
    return result


def word(what: str, value: object, words: tuple[str, ...]) -> str:
    """`value`. Raises RequestError unless it is one of these words."""
    if not isinstance(value, str) or value not in words:
        raise RequestError(f"{what} {value!r} is unknown: use {' or '.join(words)}")
    return value
