"""Builds the ONNX Runtime engine of a bundle.

The graph itself is what ONNX Runtime runs; building proves that this machine's library loads it, that its outputs
are finite, and that the caches are written in place, and records what it was proven with.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.bundle_writer import add_engine
from arforge.runner.errors import EngineError
from arforge.runner.onnxruntime_engine import OnnxRuntimeEngine, cache_names, load_library

TARGET = "onnxruntime"
DEVICE = "cpu"
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Built:
    identity: dict[str, Any]
    load_seconds: float


def build(root: Path, precision: str = "fp32", widths: Sequence[int] = ()) -> Built:
    """Build and enter the engine. `widths`: pad steps to these widths only (empty: run every width as it is).

    Raises EngineError for a precision that the target lacks, or a graph that fails its trial step.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"target {TARGET} has no precision {precision!r}: use {', '.join(PRECISIONS)}")
    if any(width < 1 for width in widths):
        raise EngineError(f"widths {list(widths)} must all be at least 1")
    bundle = open_bundle(root)
    if max(widths, default=1) > bundle.model.positions:
        raise EngineError(f"width {max(widths)} is more than the model's {bundle.model.positions} positions")
    graph = bundle.graph("step", precision).relative_to(bundle.root).as_posix()
    folder = f"engines/{TARGET}-{precision}-{DEVICE}"
    identity = {
        "target": TARGET,
        "precision": precision,
        "device": DEVICE,
        "graph": graph,
        "graph_sha256": bundle.manifest["files"][graph]["sha256"],
        "library": f"onnxruntime {load_library().__version__}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "widths": sorted(set(widths)) or None,
    }
    start = time.perf_counter()
    engine = OnnxRuntimeEngine(bundle, precision, widths=tuple(sorted(set(widths))) or None)
    seconds = time.perf_counter() - start
    try:
        try_out(bundle, engine)
    finally:
        engine.close()
    entry = {"target": TARGET, "precision": precision, "device": DEVICE, "path": folder}
    add_engine(bundle, entry, identity)
    return Built(identity, seconds)


def try_out(bundle: Bundle, engine: OnnxRuntimeEngine) -> None:
    """One guided step of the null class: slot 1 of every cache must be written, and nothing else."""
    width = min(engine.widths or (1,))
    engine.prepare(images=1, rows=2, slots=2 + width, zero_slots=1)
    queries = width if bundle.model.queries else 0
    buffers = engine.buffers(width, queries)
    buffers.tokens[:] = bundle.model.null_class
    buffers.positions[:] = 1
    buffers.write_index[:] = 1
    buffers.mask[:] = False
    buffers.mask[..., 1] = True
    engine.run(width, queries)
    if not 0 <= buffers.next_tokens.min() <= buffers.next_tokens.max() < bundle.model.vocabulary:
        raise EngineError(f"the step graph of {bundle.root} gives tokens out of range: export it again")
    for name in cache_names(bundle.model.caches):
        cache = engine.cache(name)
        if not np.isfinite(cache).all():
            raise EngineError(f"the step graph of {bundle.root} gives NaN or infinity in {name}: check the weights")
        written = np.abs(cache).sum(axis=(0, 1, 3)) > 0
        if not written[1] or written[0] or written[1 + width :].any():
            raise EngineError(f"the step graph of {bundle.root} does not update {name} in place")
