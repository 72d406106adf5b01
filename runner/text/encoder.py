"""From prompts to the features that a model reads: cleaning, tokenizer, and the bundle's text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arforge.runner import step_graph
from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import Bundle, FeaturesCondition, Graph
from arforge.runner.errors import BundleError, EngineError, NumericsError, RequestError
from arforge.runner.text.captions import clean
from arforge.runner.text.features_file import check_ids
from arforge.runner.text.prompt import check_prompts, shown
from arforge.runner.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import onnxruntime

GRAPH = "text"


class TextEncoder:
    """Opens tokenizer and graph of a bundle when the first prompt comes: a text encoder is as large as a model."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._tokenizer: TextTokenizer | None = None
        self._session: onnxruntime.InferenceSession | None = None

    def features(self, prompts: Sequence[str], *, cleaning: bool, truncate: bool = False) -> list[NDArray[np.float32]]:
        """The features of each prompt, float32 [n, width], n being its tokens with the one that ends it.

        Each prompt runs alone and without padding, so that its features depend on nothing else; equal ones run once.
        `cleaning`: as captions were cleaned in training (`captions.clean`), else they are taken as they stand.

        Raises RequestError if the bundle has no text encoder, or for a prompt that `TextTokenizer.ids` refuses, all
        before any of them runs; EngineError or BundleError for a graph or tokenizer that does not fit, NumericsError
        for features that are not finite.
        """
        return self._each(self.ids(prompts, cleaning=cleaning, truncate=truncate))

    def features_of_ids(self, ids: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """The same for ids [n] of each prompt's tokens, as the bundle's tokenizer gives them; it is not needed.

        Raises RequestError if the bundle has no text encoder, or for what `check_ids` refuses, and as `features` does.
        """
        return self._each(check_ids(ids, self._condition(words=False).slots))

    def _each(self, ids: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        keys = [one.tobytes() for one in ids]
        known = {key: self._run(one) for key, one in dict(zip(keys, ids, strict=True)).items()}
        return [known[key] for key in keys]

    def ids(self, prompts: Sequence[str], *, cleaning: bool, truncate: bool = False) -> list[NDArray[np.int64]]:
        """The ids of each prompt, int64 [n], at most as many as the model has room for. Raises as `features` does."""
        condition = self._condition(words=True)
        texts = [cleaned(text) if cleaning else text for text in check_prompts(prompts)]
        tokenizer = self._opened_tokenizer()
        return [tokenizer.ids(text, condition.slots, truncate=truncate) for text in texts]

    def close(self) -> None:
        """Free the memory; a later call opens the graph again."""
        self._tokenizer = self._session = None

    def _condition(self, *, words: bool) -> FeaturesCondition:
        condition = self._bundle.model.condition
        if not isinstance(condition, FeaturesCondition):
            raise RequestError(f"this {self._bundle.model.family} model reads no features of prompts: {condition.kind}")
        if self._graph() is None or (words and self._bundle.text_tokenizer is None):
            raise RequestError(
                f"{self._bundle.root} has no text encoder: export it with --text-encoder FOLDER, or give features"
            )
        return condition

    def _graph(self) -> Graph | None:
        return next((graph for graph in self._bundle.graphs if graph.name == GRAPH), None)

    def _opened_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            assert self._bundle.text_tokenizer is not None
            self._tokenizer = TextTokenizer.open(self._bundle.path(self._bundle.text_tokenizer))
        return self._tokenizer

    def _opened_session(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            graph = self._graph()
            assert graph is not None
            path = self._bundle.path(graph.path)
            session = open_session(path, self._threads)
            wanted, found = step_graph.text(self._bundle.model), contract_of(session)
            problem = step_graph.difference(wanted.inputs, found.inputs)
            problem = problem or step_graph.difference(wanted.outputs, found.outputs)
            if problem:
                raise BundleError(f"{path}: {problem}: export the bundle again")
            self._session = session
        return self._session

    def _run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        given = {"ids": ids[None], "mask": np.ones((1, ids.size), np.int64)}
        session = self._opened_session()
        try:
            features: NDArray[np.float32] = session.run(["features"], given)[0][0]
        except Exception as error:  # the binding's exception classes share no narrower public base
            raise EngineError(f"ONNX Runtime failed in the text encoder of {self._bundle.root}: {error}") from error
        if not np.isfinite(features).all():
            raise NumericsError(f"the text encoder of {self._bundle.root} gives features that are not finite")
        return features


def cleaned(text: str) -> str:
    """A caption as `clean` gives it. Raises RequestError if nothing is left."""
    result = clean(text)
    if not result:
        raise RequestError(f"nothing is left of the prompt {shown(text)} when it is cleaned: give it without cleaning")
    return result
