"""The TensorRT engine: caches in device memory at one address, and a program for each shape of step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.engine import Scalars, StepBuffers
from arforge.runner.backends.image_codec import ImageTokenizer
from arforge.runner.backends.onnxruntime_engine import cache_names
from arforge.runner.backends.tensorrt_identity import build_command, choose
from arforge.runner.backends.tensorrt_library import Library, load_library
from arforge.runner.backends.tensorrt_program import LoadedEngine, Program
from arforge.runner.bundle import Bundle
from arforge.runner.errors import EngineError

CACHE_TYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "half": np.dtype(np.float16),
    "bfloat16": np.dtype("V2"),
}  # numpy lacks it
SCALARS = ("guidance", "temperature", "top_k", "top_p")
ROWS = ("tokens", "positions", "write_index", "query_positions")  # inputs of one entry a row


@dataclass(frozen=True)
class Step:
    """A program, the runner's memory of it, and where that is not the program's own, which row goes where."""

    program: Program
    buffers: StepBuffers
    spread: NDArray[np.int64] | None  # (rows of the program), rows of `buffers`


class TensorRTEngine:
    """Runs a bundle's TensorRT or TensorRT-RTX engine.

    It was built for guided pairs of rows. A request without guidance has its rows in both halves, and a batch that it
    was not built for is filled up with copies of the last image.
    """

    def __init__(
        self, bundle: Bundle, identity: Mapping[str, Any], library: Library, gpu: Gpu, threads: int | None = None
    ) -> None:
        self._bundle, self._identity, self._gpu = bundle, identity, gpu
        self._profiles = {(p["images"], p["width"], p["queries"]): i for i, p in enumerate(identity["profiles"])}
        self._batches: list[int] = sorted({images for images, _, _ in self._profiles})
        self.widths: tuple[int, ...] | None = tuple(identity["widths"])
        self.largest_batch: int | None = self._batches[-1]
        self.scalars = Scalars(
            np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32)
        )
        lowered = bundle.path(identity["lowered"]) if identity["strip_weights"] else None
        self._loaded = LoadedEngine(bundle.path(identity["engine"]), library, gpu, lowered)
        self._caches = self._place_caches()
        self._programs: dict[tuple[int, int, int], Program] = {}  # as in _profiles
        self._request: tuple[int, int, int] = (0, 0, 0)  # images, rows, slots
        self._steps: dict[tuple[int, int], Step] = {}  # width, queries -> of this request
        self._tokenizer = ImageTokenizer(bundle, threads)
        self._decoder: LoadedEngine | None = None
        self._decoders: dict[int, Program] = {}  # by batch

    @classmethod
    def built(cls, target: str, bundle: Bundle, precision: str, threads: int | None = None) -> Self:
        """The engine that `arforge build` made. Raises EngineError where none is built, or fits, or there is no GPU."""
        identities = bundle.identities(target, precision)
        library, gpu = load_library(target), Gpu()
        identity = choose(bundle, identities, library.name, gpu.compute_capability)
        return cls(bundle, identity, library, gpu, threads)

    @property
    def device(self) -> str:
        return f"{self._gpu.name}, compute capability {self._gpu.compute_capability}"

    def bandwidth(self) -> float:
        return self._gpu.bandwidth()

    @property
    def cache_type(self) -> np.dtype[Any]:
        return CACHE_TYPES[self._identity["types"]]

    @property
    def captured(self) -> bool:
        """Whether every step that has run is a CUDA graph now."""
        return all(program.captured for program in self._programs.values() if program.captured is not None)

    def prepare(self, images: int, rows: int, slots: int, zero_slots: int) -> None:
        if slots > self._identity["slots"]:
            self._refuse(f"it has {self._identity['slots']} cache slots, the schedule needs {slots}", "--schedule")
        if images > self._batches[-1]:
            self._refuse(f"it decodes up to {self._batches[-1]} images together, not {images}", "--images")
        if self._request != (images, rows, slots):
            self._steps.clear()
            self._request = (images, rows, slots)
        if zero_slots:
            model, size = self._bundle.model, self.cache_type.itemsize * self._bundle.model.head_size
            for address in self._caches.values():
                heads = 2 * self._batch * model.kv_heads
                self._gpu.clear(address, self._identity["slots"] * size, zero_slots * size, heads)

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        if (width, queries) not in self._steps:
            self._steps[width, queries] = self._step(width, queries)
        return self._steps[width, queries].buffers

    def run(self, width: int, queries: int = 0) -> None:
        step = self._steps[width, queries]
        inputs, buffers = step.program.inputs, step.buffers
        for name in SCALARS:
            if name in inputs:
                inputs[name][:] = getattr(self.scalars, name)
        if "top_k" not in inputs and (self.scalars.top_k[0] > 0 or self.scalars.top_p[0] < 1):
            self._refuse("it was built without top-k and top-p", "--filters")
        if step.spread is not None:
            for name in ROWS:
                if name in inputs:
                    np.take(getattr(buffers, name), step.spread, axis=0, out=inputs[name])
            inputs["uniforms"][: len(buffers.uniforms)] = buffers.uniforms
        step.program.run()
        if step.spread is not None:
            buffers.next_tokens[:] = step.program.outputs["next_tokens"][: len(buffers.next_tokens)]

    def cache(self, name: str) -> NDArray[Any]:
        """A copy of one cache of the present request, (rows, kv_heads, slots, head_size)."""
        model, (images, rows, slots) = self._bundle.model, self._request
        shape = (2 * self._batch, model.kv_heads, self._identity["slots"], model.head_size)
        found = np.zeros(shape, self.cache_type)
        self._gpu.download(found, self._caches[name])
        self._gpu.synchronize()
        return found[np.concatenate([np.arange(images), self._batch + np.arange(rows - images)]), :, :slots]

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._identity["decoder"] is None or tokens.shape[1:] != self._bundle.model.grid:
            return self._tokenizer.decode(tokens)
        return np.concatenate(
            [
                self._decode_part(tokens[first : first + self._batches[-1]])
                for first in range(0, len(tokens), self._batches[-1])
            ]
        )

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self._tokenizer.encode(images)

    def close(self) -> None:
        for loaded in (self._loaded, self._decoder):
            if loaded is not None:
                loaded.close()
        for held in (self._programs, self._steps, self._decoders):
            held.clear()
        self._tokenizer.close()
        self._gpu.close()

    @property
    def _batch(self) -> int:
        return self._fitting(self._request[0])

    def _fitting(self, images: int) -> int:
        return min(batch for batch in self._batches if batch >= images)

    def _place_caches(self) -> dict[str, int]:
        """Memory for the largest batch. Raises EngineError unless the engine writes each cache where it reads it."""
        model = self._bundle.model
        heads = 2 * self._batches[-1] * model.kv_heads
        size = self._identity["slots"] * model.head_size * self.cache_type.itemsize  # of one head
        for name in cache_names(model.caches):
            if self._loaded.engine.get_aliased_input_tensor(f"new_{name}") != name:
                self._refuse(f"it does not update {name} in place")
        caches = {name: self._gpu.allocate(heads * size) for name in cache_names(model.caches)}
        for address in caches.values():  # NaN in a slot that no mask lets through would spoil its row all the same
            self._gpu.clear(address, size, size, heads)
        return caches

    def _step(self, width: int, queries: int) -> Step:
        (images, rows, slots), batch = self._request, self._batch
        program = self._program(batch, width, queries)
        inputs = program.inputs
        inputs["mask"][..., slots:] = False
        mask = inputs["mask"][..., :slots]
        if (images, rows) == (batch, 2 * batch):
            names = [name for name in (*ROWS, "uniforms") if name in inputs]
            own = {name: inputs[name] for name in names}
            return Step(program, StepBuffers(**own, mask=mask, next_tokens=program.outputs["next_tokens"]), None)
        outputs = queries or width
        buffers = StepBuffers(
            tokens=np.zeros((rows, width), np.int64),
            positions=np.zeros((rows, width), np.int64),
            write_index=np.zeros(rows, np.int64),
            mask=mask,
            uniforms=np.zeros((images, outputs), np.float32),
            next_tokens=np.zeros((images, outputs), np.int64),
            query_positions=np.zeros((rows, queries), np.int64) if queries else None,
        )
        image = np.minimum(np.arange(batch), images - 1)
        return Step(program, buffers, np.concatenate([image, image + (rows - images)]))

    def _program(self, batch: int, width: int, queries: int) -> Program:
        kind = (batch, width, queries)
        if kind not in self._profiles:
            asked = f" and {queries} queries" if queries else ""
            self._refuse(f"it was not built for steps of {width} tokens{asked}", "--schedule")
        if kind not in self._programs:
            placed = self._caches | {f"new_{name}": address for name, address in self._caches.items()}
            self._programs[kind] = self._loaded.program(self._profiles[kind], placed)
        return self._programs[kind]

    def _decode_part(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        batch = self._fitting(len(tokens))
        if self._decoder is None:
            path = self._bundle.path(self._identity["decoder"])
            self._decoder = LoadedEngine(path, self._loaded.library, self._gpu)
        if batch not in self._decoders:
            self._decoders[batch] = self._decoder.program(self._batches.index(batch), {})
        program = self._decoders[batch]
        program.inputs["tokens"][:] = tokens[np.minimum(np.arange(batch), len(tokens) - 1)]
        program.run()
        return program.outputs["images"][: len(tokens)].copy()

    def _refuse(self, problem: str, option: str | None = None) -> None:
        """Raise EngineError with the command that builds an engine without the problem."""
        what = f"the {self._identity['target']} {self._identity['precision']} engine of {self._bundle.root}"
        hint = f" (with {option})" if option else ""
        raise EngineError(f"{what}: {problem}; rebuild it{hint}: `{build_command(self._bundle.root, self._identity)}`")
