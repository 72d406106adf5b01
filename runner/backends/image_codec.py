"""From tokens to images and back: what codes images for the runner, and ONNX Runtime's way of doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle

if TYPE_CHECKING:
    import onnxruntime


class ImageCodec(Protocol):
    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (images, height, width, 3) of tokens (images, rows, columns)."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The reverse of `decode`."""

    def close(self) -> None: ...


class OnnxRuntimeCodec:
    """Opens the graphs of a bundle's image tokenizer when they are first used; they compute in float32."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = self._session("decoder").run(["images"], {"tokens": tokens})[0]
        return images

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        tokens: NDArray[np.int64] = self._session("encoder").run(["tokens"], {"images": images})[0]
        return tokens

    def close(self) -> None:
        self._sessions.clear()

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        if graph not in self._sessions:
            self._sessions[graph] = open_session(self._bundle.graph(graph, "fp32"), self._threads)
        return self._sessions[graph]
