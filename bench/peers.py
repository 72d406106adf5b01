"""One decoding step on arforge, and on the torch module as its authors run it: the same interface for each.

A peer is made in a process of its own. `step(slot, width)` decodes `width` tokens a row of two rows an image
(conditional and unconditional) with `slot` tokens a row before them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from arforge.runner.backends.engine import StepBuffers
from arforge.runner.backends.image_codec import OnnxRuntimeCodec
from arforge.runner.bundle import Bundle, ClassCondition, open_bundle
from arforge.runner.conditioner import Conditioner
from arforge.runner.plan import make_plan
from arforge.runner.runner import Runner

ROWS = 2  # of an image with guidance
SPARE = 192  # slots beside the grid's, for a prompt and for stand-ins of ZipAR


@dataclass(frozen=True)
class Setting:
    """What all peers are given."""

    bundles: tuple[Path, ...]  # of one model, stored in this and that
    threads: int
    work: Path  # for files that a peer makes once
    images: int = 1  # of a batch

    @property
    def rows(self) -> int:
        return ROWS * self.images

    def built(self, precision: str, low_caches: bool) -> Bundle:
        """The first bundle with that engine, with or without 8-bit caches, or the first."""
        opened = [open_bundle(path) for path in self.bundles]
        wanted = (
            bundle
            for bundle in opened
            for engine in bundle.engines
            if (engine.target, engine.precision) == ("onnxruntime", precision)
            and ("cache_check" in bundle.identity(engine)) == low_caches
        )
        return next(wanted, opened[0])


class Drawn(NamedTuple):
    """What a batch took."""

    tokens_seconds: float
    picture_seconds: float  # 0 of a peer that does not paint
    calls: float  # of the engine an image, the prompt's left out


class Peer(Protocol):
    version: str

    def step(self, slot: int, width: int) -> None: ...

    def image(self, schedule: str, prompt: int, first: int) -> Drawn:
        """A batch behind so many tokens of a prompt; `first` is the first image's seed, the others' follow."""


def steps_of(bundle: Bundle, schedule: str) -> list[tuple[int, int]]:
    """Tokens a row before each step, the prompt's left out, and its width."""
    return [(step.write_index, step.width) for step in make_plan(bundle.schedule(schedule), widths=None).steps]


class Arforge:
    """The engine's step as the runner calls it, sampler included; of an image, all that the runner does."""

    def __init__(self, setting: Setting, precision: str, *, low_caches: bool = False, kernels: bool = True) -> None:
        from arforge.engines.onnxruntime import library
        from arforge.runner.backends.kernels import OFF, PLACE
        from arforge.runner.runner import open_engine

        if not kernels:
            os.environ[PLACE] = OFF  # of this process, which is this peer's own
        self.version = library(precision)
        self.threads, self.bundle, self.images = setting.threads, setting.built(precision, low_caches), setting.images
        self.slots, self.rows, self.widest = 1 + self.bundle.model.cells + SPARE, setting.rows, 0
        self.engine = open_engine(self.bundle, "onnxruntime", precision, self.threads)

    def step(self, slot: int, width: int) -> None:
        if width != self.widest:  # as for a schedule of such steps, by which the engine chooses its caches
            self.widest = width
            self.engine.prepare(self.images, self.rows, self.slots, zero_slots=0, lockstep=width)
        fill(self.engine.buffers(width), slot, width)
        self.engine.run(width)

    @cached_property
    def runner(self) -> Runner:
        """It prepares the engine for images: steps are measured before them."""
        codec = OnnxRuntimeCodec(self.bundle, self.threads)
        if self.bundle.image_tokenizer is not None:
            codec.decode(np.zeros((1, *self.bundle.model.grid), np.int64))  # the graph is opened when it is first used
        return Runner(self.bundle, self.engine, codec, Conditioner(self.bundle, self.threads))

    def image(self, schedule: str, prompt: int, first: int) -> Drawn:
        runner, seeds, condition = self.runner, range(first, first + self.images), self.bundle.model.condition
        if isinstance(condition, ClassCondition):
            given: dict[str, Any] = {"classes": [seed % condition.classes for seed in seeds]}
        else:
            given = {"ids": [np.arange(1, prompt + 1)] * self.images}
        start = time.perf_counter()
        result = runner.generate(**given, seeds=list(seeds), batch=self.images, schedule=schedule, guidance=2.0)
        seconds = time.perf_counter() - start - result.image_seconds
        return Drawn(seconds, result.image_seconds, float(result.passes.mean()))


def fill(buffers: StepBuffers, slot: int, width: int) -> None:
    """A step of `width` tokens a row that see those before them."""
    given = np.arange(slot, slot + width)
    buffers.tokens[:], buffers.uniforms[:], buffers.guidance[:] = 7, 0.5, 2
    buffers.positions[:], buffers.write_index[:] = given, slot
    buffers.mask[:] = np.arange(buffers.mask.shape[-1]) <= given[:, None]


class Torch:
    """The module, eager or its layers compiled, with a static cache that is written in place, and the sampler."""

    def __init__(self, setting: Setting, precision: str, compiled: bool) -> None:
        import torch

        from arforge.export import layers, sampler
        from arforge.export.verify import load_module

        self.torch, self.sample = torch, sampler.sample
        self.version = f"torch {torch.__version__}"
        torch.set_num_threads(setting.threads)
        self.images, self.rows = setting.images, setting.rows
        layers.write_cache = write_in_place
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        bundle = open_bundle(setting.bundles[0])
        module = load_module(bundle).to(dtype)
        self.slots = 1 + bundle.model.cells + SPARE
        self.caches = [(key.to(dtype), value.to(dtype)) for key, value in module.empty_caches(self.rows, self.slots)]
        if compiled:  # layer by layer: all share one compilation, where the whole takes many minutes
            for layer in module.layers:
                layer.compile(dynamic=False)
        self.module = module

    def step(self, slot: int, width: int) -> None:
        torch = self.torch
        with torch.inference_mode():
            positions = torch.arange(slot, slot + width).expand(self.rows, width)
            mask = torch.arange(self.slots) <= positions[:, None, :, None]
            tokens = torch.full((self.rows, width), 7)
            logits, _ = self.module(tokens, positions, mask, positions[0], self.caches)
            one, uniforms = torch.ones(self.images), torch.full((self.images, width), 0.5)
            self.sample(logits, uniforms, 2 * one, one, torch.zeros(self.images, dtype=torch.int64), one)


def write_in_place(cache: Any, update: Any, slots: Any) -> Any:
    """As the authors' static cache does it; the bundle's own module keeps caches immutable, for tracing."""
    return cache.index_copy_(2, slots, update)


def llama_cpp(setting: Setting, kind: str) -> Peer:
    from llama_peer import LlamaCpp

    return LlamaCpp(setting, kind)


def openvino(setting: Setting, kind: str) -> Peer:
    from openvino_peer import OpenVino

    return OpenVino(setting, kind)


PEERS: dict[str, Callable[[Setting], Peer]] = {
    "arforge int8": lambda setting: Arforge(setting, "int8"),
    "arforge int8, caches too": lambda setting: Arforge(setting, "int8", low_caches=True),
    "arforge int8, library's products": lambda setting: Arforge(setting, "int8", kernels=False),
    "arforge fp32": lambda setting: Arforge(setting, "fp32"),
    "llama.cpp Q8_0": lambda setting: llama_cpp(setting, "Q8_0"),
    "openvino int8": lambda setting: openvino(setting, "int8"),
    "arforge int4": lambda setting: Arforge(setting, "int4"),
    "arforge int4, caches too": lambda setting: Arforge(setting, "int4", low_caches=True),
    "llama.cpp Q4_0": lambda setting: llama_cpp(setting, "Q4_0"),
    "openvino int4": lambda setting: openvino(setting, "int4"),
    "torch eager fp32": lambda setting: Torch(setting, "fp32", compiled=False),
    "torch eager bf16": lambda setting: Torch(setting, "bf16", compiled=False),
    "torch compiled bf16": lambda setting: Torch(setting, "bf16", compiled=True),
}
