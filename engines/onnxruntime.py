"""Builds the ONNX Runtime engine of a bundle.

ONNX Runtime runs a graph of the engine's own, made from the bundle's float32 one: for fp32, and for weights that the
bundle stores in blocks, it lies beside that, whose weights it shares; for int8 and int4 of float weights beside the
engine's identity, with weights of its own. Building proves that this machine's library loads the graph, that its
outputs are finite, and that the caches are written in place, and records what it was proven with.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.engines.cache_trial import LowCaches
from arforge.engines.decode_widths import choose, measure, stored_widths
from arforge.engines.jacobi_windows import try_windows, windows_to_try
from arforge.engines.onnxruntime_job import IN_BLOCKS, QUANTIZATIONS, TARGET, BuildJob
from arforge.runner.backends.kernels import NAME, find_kernels
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.runner.bundle import BuiltEngine, Bundle, open_bundle, sha256_of
from arforge.runner.bundle.writer import add_engine, changing
from arforge.runner.errors import BundleError, EngineError
from arforge.runner.optional import needed
from arforge.runner.request import Subjects
from arforge.runner.schedules.jacobi_windows import MeasuredWindow
from arforge.runner.step_graph import cache_names, guided_rows

DEVICE = "cpu"
OWN = "step-onnxruntime"  # the name of a graph beside the bundle's, before a hash
PARTS = ("graph", "weights", "cache_graph", "own_graph")  # of an identity: files that a build wrote


@dataclass(frozen=True)
class Built:
    identity: dict[str, Any]
    load_seconds: float | None  # None: it was not opened


def build(
    root: Path,
    precision: str = "fp32",
    widths: Sequence[int] = (),
    quantization: str | None = None,
    *,
    caches: str = "fp32",
    measure_widths: bool = False,
    measure_jacobi: bool = False,
    trial: bool = True,
    subjects: Subjects | None = None,
) -> Built:
    """Build and enter the engine. `widths`: pad steps to these widths only (empty: run every width as it is).

    `measure_widths`: time a step of every width that the stored schedules use, and pad where that is quicker.
    `measure_jacobi`: see how far next-token decoding had best run ahead on drafts, alone and in a batch of 8, for
    `jacobi:auto`; it takes whole images, and the caches of the batch.
    `trial`: open it and run a step, which takes the engine's memory; building without takes that of a few blocks.
    `quantization`, of int8 alone: "blocks" and "rows" need no calibration, "static" is the calibrated graph. None times
    products in blocks and by rows on this machine and takes the quicker; without a trial, and where the bundle stores
    blocks, it is blocks.
    `caches` "int8": draw a few images, give keys and values 8 bits by them, and use that graph where all rows write to
    the same slots, up to the width to which it is quicker. `subjects`: what those images show, classes by default.
    Raises EngineError for a precision that the target lacks, or a graph that fails its trial step.
    """
    job = BuildJob(
        precision,
        tuple(sorted(set(widths))),
        quantization,
        caches,
        subjects,
        measure_widths=measure_widths,
        measure_jacobi=measure_jacobi,
        trial=trial,
    )
    job.check()
    open_bundle(root)  # what is no bundle says so, before anything looks for a lock
    with changing(root) as bundle:
        job.check_bundle(bundle)
        return _build(bundle, job)


def _build(bundle: Bundle, job: BuildJob) -> Built:
    folder = f"engines/{TARGET}-{job.precision}-{DEVICE}"
    quantization, tried = job.quantization, dict[str, Any]()
    if job.chooses and bundle.model.stored_precision not in IN_BLOCKS:
        quantization, tried = quicker(bundle)
    rows, new = quantization == "rows", list[Path]()
    if quantization == "static":
        graph: dict[str, Any] = {"graph": place(bundle, calibrated_graph(bundle))}
    else:
        graph, new = lowered(bundle, job.precision, bundle.path(folder), rows=rows)
    path = bundle.path(graph["graph"])
    graph["graph_sha256"] = sha256_of(path)
    low = LowCaches(bundle, job.precision, path, job.subjects, rows=rows) if job.low_caches else None
    runs_own = job.own and job.trial and find_kernels() is not None
    first = replace(job, measure_widths=False, measure_jacobi=False) if runs_own else job
    found = tried_out(bundle, first, path, graph.get("exact_width"), low) if job.trial else Trial(job.widths or None)
    own = write_own(bundle, job.precision, path, {} if low is None else low.scales, rows=rows) if job.own else None
    if own is not None and runs_own:
        found = tried_out(bundle, job, own, None, None)
    identity: dict[str, Any] = {
        "target": TARGET,
        "precision": job.precision,
        "device": DEVICE,
        **graph,
        "library": library(job.precision),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "widths": None if found.widths is None else list(found.widths),
    }
    if job.measure_widths:
        identity["width_milliseconds"] = {str(width): round(1000 * one, 3) for width, one in found.costs.items()}
    if job.measure_jacobi:
        identity["jacobi"] = [window.to_json() for window in found.windows]
    if job.precision in IN_BLOCKS:
        identity |= {"quantization": quantization or QUANTIZATIONS[0], **tried}
    if low is not None:
        identity |= low.facts
        new += low.files
        if "cache_graph" in low.facts:
            identity.pop("exact_width", None)  # one token's step and running ahead have caches of two types
    if own is not None:
        identity |= {"own_graph": place(bundle, own), "own_graph_sha256": sha256_of(own)}
        new.append(own)
    kind = BuiltEngine(TARGET, job.precision, DEVICE, folder)
    gone = unused_graphs(bundle, kind, {identity.get(part, "") for part in PARTS})
    add_engine(bundle, kind, identity, new, gone)
    return Built(identity, found.load_seconds)


@dataclass(frozen=True)
class Trial:
    """What trying an engine told."""

    widths: tuple[int, ...] | None  # of its steps; None: any
    costs: Mapping[int, float] = field(default_factory=dict)  # seconds of a step by width
    windows: Sequence[MeasuredWindow] = ()
    load_seconds: float | None = None  # None: it was not opened


def tried_out(bundle: Bundle, job: BuildJob, path: Path, exact_width: int | None, low: LowCaches | None) -> Trial:
    """Open the graph as an engine, try it, measure what is asked for, and close it.

    Raises EngineError if its trial step fails.
    """
    start = time.perf_counter()
    engine = OnnxRuntimeEngine(bundle, job.precision, widths=job.widths or None, path=path)
    load_seconds, engine.exact_width = time.perf_counter() - start, exact_width
    widths, costs, windows = engine.widths, {}, []
    try:
        try_out(bundle, engine)
        if job.measure_jacobi and (tried := windows_to_try(bundle, engine)):
            windows = try_windows(bundle, engine, tried)
        if job.measure_widths:
            costs = measure(engine, bundle, stored_widths(bundle))
            widths = choose(costs)
        if low is not None:
            low.try_out(engine)
    finally:
        engine.close()
    return Trial(widths, costs, windows, load_seconds)


def library(precision: str) -> str:
    """What runs an engine here, as its identity says it."""
    name = f"onnxruntime {load_library().__version__}"
    return f"{name} with {NAME}" if precision in IN_BLOCKS and find_kernels() is not None else name


def calibrated_graph(bundle: Bundle) -> Path:
    try:
        return bundle.graph(bundle.sampler.graph, "int8")
    except BundleError:
        raise EngineError(f"{bundle.root} has no calibrated graph: make it with `arforge calibrate`") from None


def quicker(bundle: Bundle) -> tuple[str, dict[str, Any]]:
    """The quantisation whose products are quicker on this machine, and what an identity says of the trial."""
    with needed("building", "build", EngineError):
        from arforge.engines.product_trial import try_products

    found = try_products(bundle)
    taken = {
        form: {str(width): round(1000 * one, 3) for width, one in seconds.items()}
        for form, seconds in found.seconds.items()
    }
    return found.quicker, {"product_milliseconds": taken}


def lowered(bundle: Bundle, precision: str, folder: Path, *, rows: bool = False) -> tuple[dict[str, Any], list[Path]]:
    """Write the engine's own graph; what an identity says of it, and the new files."""
    with needed("building", "build", EngineError):
        from arforge.engines.onnxruntime_attention import narrow_width
        from arforge.engines.onnxruntime_graph import lower_for_onnxruntime
        from arforge.engines.tensorrt_graph import write_model

    source = bundle.graph(bundle.sampler.graph, "fp32")
    shared = precision in ("fp32", bundle.model.stored_precision)
    narrow = narrow_width(bundle.model)
    model = lower_for_onnxruntime(source, precision, narrow, shared=shared, rows=rows)
    files = list(write_model(model, source.parent, OWN) if shared else write_model(model, folder, "step"))
    name = place(bundle, source)
    facts: dict[str, Any] = {"graph": place(bundle, files[0]), "source": name, "exact_width": narrow}
    if len(files) > 1:
        facts["weights"] = place(bundle, files[1])
    return {**facts, "source_sha256": bundle.files[name].sha256}, files


def write_own(
    bundle: Bundle, precision: str, graph: Path, scales: Mapping[str, NDArray[np.float32]], *, rows: bool
) -> Path:
    """Write the graph for arforge's own operators beside an engine's other one, whose weights it reads."""
    with needed("building", "build", EngineError):
        from arforge.engines.onnxruntime_graph import lower_for_onnxruntime, share_weights
        from arforge.engines.tensorrt_graph import write_model

    source = bundle.graph(bundle.sampler.graph, "fp32")
    shared = precision == bundle.model.stored_precision
    model = lower_for_onnxruntime(source, precision, 1, shared=shared, rows=rows, scales=scales, own=True)
    share_weights(model, graph)
    return write_model(model, graph.parent, graph.name.rpartition("-")[0])[0]


def unused_graphs(bundle: Bundle, kind: BuiltEngine, used: set[str]) -> list[str]:
    """Files that earlier builds wrote beside the bundle's graphs, now that the engine of that kind has `used`."""
    for engine in bundle.engines:
        if engine.target == TARGET and engine.key != kind.key:
            identity = bundle.identity(engine)
            used |= {identity.get(part, "") for part in PARTS}
    written = (name for name in bundle.files if PurePosixPath(name).name.startswith(f"{OWN}-"))
    return [name for name in written if name not in used]


def place(bundle: Bundle, path: Path) -> str:
    return path.relative_to(bundle.root).as_posix()


def try_out(bundle: Bundle, engine: OnnxRuntimeEngine) -> None:
    """One guided step: slot 1 of every cache must be written, and nothing else."""
    width = min(engine.widths or (1,))
    engine.prepare(images=1, rows=guided_rows(1, guided=True), slots=2 + width, zero_slots=1)
    queries = width if bundle.model.queries else 0
    buffers = engine.buffers(width, queries)
    buffers.tokens[:] = bundle.model.ids - 1  # of a model of classes, the null class or a special token
    buffers.positions[:] = 1
    buffers.write_index[:] = 1
    buffers.mask[:] = False
    buffers.mask[..., 1] = True
    engine.run(width, queries)
    for name in cache_names(bundle.model.caches):
        cache = engine.cache(name)
        if not np.isfinite(cache).all():
            raise EngineError(f"the step graph of {bundle.root} gives non-finite values in {name}: check the weights")
        written = np.abs(cache).sum(axis=(0, 1, 3)) > 0
        if not written[1] or written[0] or written[1 + width :].any():
            raise EngineError(f"the step graph of {bundle.root} does not update {name} in place")
    if not 0 <= buffers.next_tokens.min() <= buffers.next_tokens.max() < bundle.model.vocabulary:
        raise EngineError(f"the step graph of {bundle.root} gives tokens out of range: export it again")
