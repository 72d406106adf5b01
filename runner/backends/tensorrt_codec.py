"""The image decoder as a TensorRT engine, beside the engine that steps; what that was not built for stays elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.image_codec import ImageCodec
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_program import LoadedEngine, Program
from arforge.runner.bundle import Bundle


class TensorRTCodec:
    """Decodes images of the model's own grid on the GPU of `engine`, which must be closed after it.

    `other` encodes, decodes other grids, and does all of it for an engine that was built without an image decoder.
    """

    def __init__(self, bundle: Bundle, engine: TensorRTEngine, other: ImageCodec) -> None:
        self._bundle, self._engine, self._other = bundle, engine, other
        self._decoder: LoadedEngine | None = None
        self._programs: dict[int, Program] = {}  # by batch

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._engine.identity["decoder"] is None or tokens.shape[1:] != self._bundle.model.grid:
            return self._other.decode(tokens)
        most = self._engine.batches[-1]
        parts = [tokens[first : first + most] for first in range(0, len(tokens), most)]
        return np.concatenate([self._decode(part) for part in parts])

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self._other.encode(images)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._programs.clear()
        self._other.close()

    def _decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        engine = self._engine
        batch = min(batch for batch in engine.batches if batch >= len(tokens))
        if self._decoder is None:
            self._decoder = LoadedEngine(self._bundle.path(engine.identity["decoder"]), engine.library, engine.gpu)
        if batch not in self._programs:
            self._programs[batch] = self._decoder.program(engine.batches.index(batch), {})
        program = self._programs[batch]
        program.inputs["tokens"][:] = tokens[np.minimum(np.arange(batch), len(tokens) - 1)]
        program.run()
        return program.outputs["images"][: len(tokens)].copy()
