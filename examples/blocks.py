"""Engines that `arforge build` does not make, or not if they are slower; links in each folder lead here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from arforge.engines.cache_trial import calibrate_caches
from arforge.engines.onnxruntime_attention import narrow_width
from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
from arforge.engines.tensorrt_graph import write_model
from arforge.runner import Runner
from arforge.runner.backends.image_codec import OnnxRuntimeCodec
from arforge.runner.backends.onnxruntime_engine import FoldedGraph, OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditioner import Conditioner

HEADS = ("output.weight", "head.weight")  # the last product, which makes the logits; ARPG's is the latter


@dataclass(frozen=True)
class Blocks:
    """Bits and inputs a scale of all products but the last one, and the bits of that."""

    bits: int
    block: int
    head_bits: int

    def __call__(self, name: str, bits: int) -> tuple[int, int]:
        return (self.head_bits, self.head_block) if name in HEADS else (self.bits, self.block)

    @property
    def head_block(self) -> int:
        return 256 if self.head_bits == 8 else self.block


INT8 = Blocks(8, 256, 8)  # as `arforge build --precision int8` takes them
INT4 = (Blocks(4, 64, 8), Blocks(4, 32, 8), Blocks(4, 64, 4))  # the first as `--precision int4` does


def open_in_blocks(bundle: Bundle, blocks: Blocks, threads: int | None) -> Runner:
    """A runner of the bundle's float32 weights in such blocks; its engine's files are gone once it is open."""
    narrow = narrow_width(bundle.model)
    model = lower_for_onnxruntime(
        bundle.graph(bundle.sampler.graph, "fp32"), f"int{blocks.bits}", narrow, choice=blocks
    )
    with TemporaryDirectory() as folder:
        path = write_model(model, Path(folder), "step")[0]
        engine = OnnxRuntimeEngine(bundle, f"int{blocks.bits}", threads, path=path)
    engine.exact_width = narrow
    return Runner(bundle, engine, OnnxRuntimeCodec(bundle, threads), Conditioner(bundle, threads))


@contextmanager
def open_with_low_caches(bundle: Bundle, threads: int | None) -> Iterator[Runner]:
    """A runner in int8 blocks whose keys and values have 8 bits in all steps, whatever they cost."""
    source, narrow = bundle.graph(bundle.sampler.graph, "fp32"), narrow_width(bundle.model)
    with TemporaryDirectory() as folder:
        path = write_model(lower_for_onnxruntime(source, "int8", narrow, choice=INT8), Path(folder), "step")[0]
        plain = OnnxRuntimeEngine(bundle, "int8", threads, path=path)
        try:
            scales = calibrate_caches(bundle, plain).scales
        finally:
            plain.close()
        model = lower_for_onnxruntime(source, "int8", narrow, choice=INT8, scales=scales)
        folded = FoldedGraph(write_model(model, Path(folder), "folded")[0], bundle.model.position_rows)
        engine = OnnxRuntimeEngine(bundle, "int8", threads, path=path, folded=folded)
        with Runner(bundle, engine, OnnxRuntimeCodec(bundle, threads), Conditioner(bundle, threads)) as runner:
            yield runner
