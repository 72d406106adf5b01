"""8-bit caches of an engine: their scales, by images that it draws itself, and up to which width they are quicker."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.engines.decode_widths import GAIN, stored_widths, take_turns
from arforge.runner.backends.onnxruntime_engine import FoldedGraph, OnnxRuntimeEngine
from arforge.runner.bundle import Bundle, ClassCondition, sha256_of
from arforge.runner.conditioner import Conditioner
from arforge.runner.conditions import sample_subjects
from arforge.runner.errors import EngineError
from arforge.runner.optional import needed
from arforge.runner.request import Request, Subjects
from arforge.runner.runner import Runner
from arforge.runner.step_graph import cache_names

IMAGES, OTHERS = 4, 2  # that scales are taken from, and that they are tried on
MARGIN = 1.3  # of a channel's largest value
WORST = 0.05  # of a cache's size, root mean square: where 8 bits err by more, the layer keeps float32
STEPS = 127
GUIDED = 2.0  # so that unconditional rows are seen too


class LowCaches:
    """A graph with 8-bit caches beside an engine's own, and what an identity says of it."""

    def __init__(self, bundle: Bundle, precision: str, graph: Path, subjects: Subjects | None, *, rows: bool) -> None:
        self._bundle, self._precision, self._graph, self._rows = bundle, precision, graph, rows
        self._subjects = subjects
        self.facts: dict[str, Any] = {}
        self.files: list[Path] = []
        self.scales: Mapping[str, NDArray[np.float32]] = {}

    def try_out(self, engine: OnnxRuntimeEngine) -> None:
        """Find scales with the engine, which is open, write the graph, and keep it if some steps are quicker so."""
        found = calibrate_caches(self._bundle, engine, self._subjects)
        self.scales = found.scales
        files = self._write(found.scales)
        tried = try_caches(self._bundle, engine, files[0], self._precision, self._graph)
        graph = files[0].relative_to(self._bundle.root).as_posix()
        taken = {
            kind: {str(width): round(1000 * one, 3) for width, one in seconds.items()}
            for kind, seconds in tried.seconds.items()
        }
        self.facts = {"cache_check": found.to_json(), "cache_milliseconds": taken}
        if not tried.width:
            if graph not in self._bundle.files:
                files[0].unlink()
            return
        self.facts |= {"cache_graph": graph, "cache_graph_sha256": sha256_of(files[0]), "cache_width": tried.width}
        self.files = files

    def _write(self, scales: Mapping[str, NDArray[np.float32]]) -> list[Path]:
        """Write the graph beside the engine's own, whose weights it reads; the new files."""
        with needed("building", "build", EngineError):
            from arforge.engines.onnxruntime_attention import narrow_width
            from arforge.engines.onnxruntime_graph import lower_for_onnxruntime, share_weights
            from arforge.engines.tensorrt_graph import write_model

        model, precision = self._bundle.model, self._precision
        shared = precision == model.stored_precision
        source = self._bundle.graph(self._bundle.sampler.graph, "fp32")
        folded = lower_for_onnxruntime(
            source,
            precision,
            narrow_width(model),
            shared=shared,
            rows=self._rows,
            scales=scales,
            own_positions=model.positions == "sequence",
        )
        share_weights(folded, self._graph)
        return list(write_model(folded, self._graph.parent, self._graph.name.rpartition("-")[0]))


@dataclass(frozen=True)
class Calibrated:
    """What 8 bits make of the caches of images that had no part in the scales."""

    scales: Mapping[str, NDArray[np.float32]]  # (kv_heads * head_size) by cache, of the layers that get 8 bits
    images: int
    error: float  # of the worst of their caches
    clipped: float  # the share of their numbers that no code reaches
    kept: tuple[int, ...]  # the layers that stay float32

    def to_json(self) -> dict[str, Any]:
        return {"images": self.images, "error": round(self.error, 5), "clipped": self.clipped, "kept": list(self.kept)}


def check_foldable(bundle: Bundle, subjects: Subjects | None) -> None:
    """Raise EngineError for a model whose keys and values cannot be 8 bits, or not by such images.

    Raises RequestError for subjects that the model does not take.
    """
    model = bundle.model
    if subjects is not None:
        conditioner = Conditioner(bundle)
        try:
            conditioner.conditions(Request(**subjects.take(range(IMAGES + OTHERS))))
        finally:
            conditioner.close()
    elif not isinstance(model.condition, ClassCondition):
        raise EngineError(
            f"this {model.family} model takes prompts, and by made-up ones the ranges of its keys and values would be "
            "others: give some of the kind that it is to draw (--prompt, --prompts or --features)"
        )


def calibrate_caches(bundle: Bundle, engine: OnnxRuntimeEngine, subjects: Subjects | None = None) -> Calibrated:
    """Scales of every channel of every cache, from images of the default schedule. Raises EngineError if none fits.

    `subjects`: what the images show, round and round; None: classes, or prompts that are made up.
    """
    chosen = subjects or sample_subjects(bundle.model, IMAGES + OTHERS)
    first = drawn(bundle, engine, chosen, range(IMAGES))
    largest = {name: np.abs(cache).max(axis=(0, 2)).ravel() for name, cache in first.items()}
    scales = {name: np.where(one > 0, MARGIN * one / STEPS, 1).astype(np.float32) for name, one in largest.items()}
    others = drawn(bundle, engine, chosen, range(IMAGES, IMAGES + OTHERS))
    found = {name: rounded(cache, scales[name]) for name, cache in others.items()}
    layers = [
        {f"{kind}_cache_{layer}": found[f"{kind}_cache_{layer}"] for kind in ("key", "value")}
        for layer in range(bundle.model.caches)
    ]
    kept = tuple(layer for layer, parts in enumerate(layers) if max(error for error, _ in parts.values()) > WORST)
    low = {name: part for layer, parts in enumerate(layers) if layer not in kept for name, part in parts.items()}
    if not low:
        worst = max(error for error, _ in found.values())
        raise EngineError(f"8 bits make an error of {worst:.0%} of keys or values in every layer: leave caches float32")
    clipped = float(np.mean([share for _, share in low.values()]))
    return Calibrated(
        {name: scales[name] for name in low}, OTHERS, max(error for error, _ in low.values()), clipped, kept
    )


def drawn(
    bundle: Bundle, engine: OnnxRuntimeEngine, subjects: Subjects, seeds: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """What the caches hold after images of the default schedule, of the subjects of the same numbers as the seeds."""
    request = {**subjects.take(seeds), "seeds": seeds, "guidance": GUIDED, "batch": len(seeds)}
    Runner(bundle, engine).generate(**request, images=False)
    return {name: engine.cache(name).copy() for name in cache_names(bundle.model.caches)}


def rounded(cache: NDArray[np.float32], scales: NDArray[np.float32]) -> tuple[float, float]:
    """The error of a cache (rows, kv_heads, slots, head_size) in 8 bits, relative, and the share that is clipped."""
    scale = scales.reshape(1, cache.shape[1], 1, cache.shape[3])
    codes = np.rint(cache / scale)
    clipped = float((np.abs(codes) > STEPS).mean())
    error = np.clip(codes, -STEPS, STEPS) * scale - cache
    size = float(np.square(cache, dtype=np.float64).sum())
    return (float(np.square(error, dtype=np.float64).sum()) / size) ** 0.5 if size else 0.0, clipped


@dataclass(frozen=True)
class TriedCaches:
    seconds: Mapping[str, Mapping[int, float]]  # of a step, by the caches' precision and width
    width: int  # of the widest steps up to which 8 bits pay; 0: none


def try_caches(bundle: Bundle, engine: OnnxRuntimeEngine, path: Path, precision: str, plain_path: Path) -> TriedCaches:
    """Time steps of an open engine, whose graph is at `plain_path`, beside those of its folded graph at `path`."""
    widths = list(engine.widths or stored_widths(bundle))
    graph = FoldedGraph(path, max(widths))
    other = OnnxRuntimeEngine(bundle, precision, path=plain_path, folded=graph)
    try:
        plain, low = take_turns([engine, other], bundle, widths)
    finally:
        other.close()
    medians = {
        kind: {width: statistics.median(one) for width, one in taken.items()}
        for kind, taken in (("fp32", plain), ("int8", low))
    }
    ratios = {
        width: statistics.median(one / other for one, other in zip(low[width], plain[width], strict=True))
        for width in widths
    }
    return TriedCaches(medians, widest(ratios))


def widest(ratios: Mapping[int, float]) -> int:
    """The width up to which 8 bits save most, by what a step of each takes of its time with float32; 0 where none do.

    Savings of noise's size count as losses, and all up to the width count together: one bad measure decides nothing.
    """
    found, best, total = 0, 0.0, 0.0
    for width in sorted(ratios):
        total += log(1 - GAIN) - log(ratios[width])
        if total > best:
            found, best = width, total
    return found
