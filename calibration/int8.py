"""INT8 calibration of a bundle: from real schedules to graphs with explicit quantisation, and what they cost."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from arforge.calibration.agreement import Int8Agreement, same_tokens, teacher_forced
from arforge.calibration.layer_error import LayerError, RowSample, layer_errors
from arforge.calibration.layers import Layer, activations, find_layers, select
from arforge.calibration.quantize import FOLDER, PRECISION, WEIGHTS, quantize, write_graphs
from arforge.calibration.ranges import ChannelMaxima, Histograms, Rule
from arforge.calibration.replacement import enter
from arforge.calibration.requests import Requests, StageProgress, encoded, generate, held_out, spread
from arforge.calibration.smooth import Fold, Scales, find_folds, smooth, smoothing
from arforge.calibration.taps import Observer, TappedEngine
from arforge.export.stored_tensors import take_in
from arforge.export.wide_weights import load_wide
from arforge.runner.bundle import Bundle, Graph, open_bundle
from arforge.runner.bundle.writer import changing, remade, write_text
from arforge.runner.request import Subjects
from arforge.version import VERSION

RECORD = f"{FOLDER}/calibration.json"
LIBRARIES = ("onnxruntime", "onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class CalibrationJob:
    """What to calibrate, and how. None of `schedules`: every stored one.

    `subjects`: what to draw, for a model that takes prompts real ones or their features; None: classes far apart.
    """

    bundle: Path
    rule: Rule
    schedules: Sequence[str] = ()
    samples: int = 16
    seed: int = 0
    guidance: float | None = None  # None: the bundle's
    batch: int = 8
    smooth: float = 0.75  # 0 is off
    exclude: Sequence[str] = ()
    check: int = 8  # held-out images a schedule to measure on; 0: measure nothing
    trials: int = 3  # of the worst layers, each left out in turn, to see what that buys
    threads: int | None = None
    subjects: Subjects | None = None


@dataclass(frozen=True)
class Trial:
    """The int8 graph with some more layers in float32, on the first schedule."""

    excluded: tuple[str, ...]
    agreement: Int8Agreement
    bytes_added: int


@dataclass(frozen=True)
class Int8Report:
    layers: list[LayerError] = field(default_factory=list)
    agreement: list[Int8Agreement] = field(default_factory=list)
    same_tokens: dict[str, float] = field(default_factory=dict)  # by schedule; greedy, each graph alone
    trials: list[Trial] = field(default_factory=list)


@dataclass(frozen=True)
class Calibrated:
    requests: Requests
    layers: int  # quantised
    excluded: tuple[str, ...]
    smoothed: int  # activations
    report: Int8Report
    stale: tuple[str, ...]  # engines of an older int8 graph, taken out of the bundle
    record: dict[str, Any]  # as stored in the bundle


@dataclass(frozen=True)
class Study:
    """A model with what was found out about it, from which int8 graphs are made."""

    job: CalibrationJob
    bundle: Bundle
    layers: list[Layer]
    folds: list[Fold]
    limits: dict[str, float]
    scales: Scales

    def write(self, root: Path, excluded: frozenset[str]) -> Bundle:
        """Write the int8 graphs below `root`; returns a bundle of them alone."""
        path = self.bundle.graph("step-logits", "fp32")
        model = load_wide(path)
        for tensor in model.graph.initializer:
            take_in(tensor, path.parent)
        smooth(model, self.folds, self.scales)
        kept = [layer for layer in self.layers if layer.name not in excluded]
        (root / FOLDER).mkdir(parents=True)
        names = write_graphs(quantize(model, kept, self.limits), root / FOLDER, self.bundle.sampler.kind)
        graphs = tuple(Graph(name, PRECISION, f"{FOLDER}/{name}.onnx", f"{FOLDER}/{WEIGHTS}") for name in names)
        return replace(self.bundle, root=root, graphs=graphs)


def calibrate(job: CalibrationJob, progress: StageProgress = lambda what, done, total: None) -> Calibrated:
    """Put int8 graphs into the bundle, in place of older ones; the bundle is as before or whole at every moment.

    Raises CalibrationError for requests or layers that leave nothing to do, ScheduleError for a schedule that does
    not fit the model, and BundleError where the bundle has no float32 graph or cannot be written.
    """
    open_bundle(job.bundle)  # what is no bundle says so, before anything looks for a lock
    with changing(job.bundle) as bundle:
        graph = load_wide(bundle.graph("step-logits", "fp32")).graph
        layers = find_layers(graph)
        excluded = select(layers, job.exclude)
        requests = spread(bundle, job.schedules, job.samples, job.seed, job.guidance, job.batch, job.subjects)
        with remade(bundle) as stage:  # before the work: it may not be writable
            made = encoded(bundle, requests, job.threads)
            study = measure(job, bundle, graph, layers, excluded, made, progress)
            int8 = study.write(stage, excluded)
            report = check(study, int8, excluded, made, progress) if job.check else Int8Report()
            record = {**provenance(study, excluded, requests), "report": asdict(report)}
            write_text(stage / RECORD, json.dumps(record, indent=1) + "\n")
            stale = enter(bundle, int8)
    names = tuple(sorted(excluded))
    return Calibrated(requests, len(layers) - len(names), names, len(study.scales), report, stale, record)


def measure(
    job: CalibrationJob,
    bundle: Bundle,
    graph: onnx.GraphProto,
    layers: list[Layer],
    excluded: frozenset[str],
    requests: Requests,
    progress: StageProgress,
) -> Study:
    """Find ranges, and the scales of smoothing: a pass for the largest values, another where a rule needs more."""
    used = [layer for layer in layers if layer.name not in excluded]
    tensors = list(activations(used))

    def observe(observer: Observer, what: str) -> None:
        dict(generate(bundle, TappedEngine(bundle, tensors, observer, job.threads), requests, what, progress))

    maxima = ChannelMaxima()
    observe(maxima, "largest values")
    folds: list[Fold] = []
    scales: Scales = {}
    if job.smooth:
        folds = [fold for fold in find_folds(graph, layers) if fold.activation in tensors]
        scales = smoothing(graph, bundle.graph("step-logits", "fp32").parent, folds, maxima.maxima, job.smooth)
    largest = {name: float((seen / scales.get(name, np.float32(1))).max()) for name, seen in maxima.maxima.items()}
    if job.rule.method == "max":
        return Study(job, bundle, layers, folds, largest, scales)
    histograms = Histograms(largest, scales)
    observe(histograms, "histograms")
    limits = {name: job.rule.limit(counts, largest[name]) for name, counts in histograms.counts.items()}
    return Study(job, bundle, layers, folds, limits, scales)


def check(
    study: Study, int8: Bundle, excluded: frozenset[str], requests: Requests, progress: StageProgress
) -> Int8Report:
    """Compare with float32 on requests that the ranges have not seen."""
    job, bundle = study.job, study.bundle
    unseen = held_out(requests, job.check, bundle.model)
    kept = [layer for layer in study.layers if layer.name not in excluded]
    sample = RowSample(job.seed)
    engine = TappedEngine(bundle, list(activations(kept)), sample, job.threads)
    dict(generate(bundle, engine, unseen, "layers", progress))
    columns = {fold.into: study.scales[fold.activation] for fold in study.folds}
    graphs = (bundle.graph("step-logits", "fp32"), int8.graph("step-logits", PRECISION))
    errors = layer_errors(kept, sample.rows, study.limits, study.scales, columns, *graphs)
    return Int8Report(
        errors,
        teacher_forced(bundle, int8, unseen, "most likely tokens", progress, job.threads),
        same_tokens(bundle, int8, unseen, progress, job.threads),
        list(try_exclusions(study, int8.root, excluded, errors, unseen, progress)),
    )


def try_exclusions(
    study: Study,
    stage: Path,
    excluded: frozenset[str],
    errors: Sequence[LayerError],
    unseen: Requests,
    progress: StageProgress,
) -> Iterator[Trial]:
    """Leave out each of the worst layers, then all of them, and compare again on the first schedule."""
    sizes = {layer.name: layer.bytes_saved for layer in study.layers}
    worst = [error.layer for error in sorted(errors, key=lambda error: -error.error)][: study.job.trials]
    more = [(name,) for name in worst] + ([tuple(worst)] if len(worst) > 1 else [])
    first = replace(unseen, schedules=unseen.schedules[:1])
    for names in more:
        if len(excluded | set(names)) == len(study.layers):
            continue  # nothing would be left to quantise
        folder = stage / "trial"
        try:
            int8 = study.write(folder, excluded | set(names))
            found = teacher_forced(
                study.bundle, int8, first, f"without {', '.join(names)}", progress, study.job.threads
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        yield Trial(names, found[0], sum(sizes[name] for name in names))


def provenance(study: Study, excluded: frozenset[str], requests: Requests) -> dict[str, Any]:
    """What the graphs were made from and how; the same for the same calibration."""
    job, float32 = study.job, study.bundle.stored_graph("step-logits", "fp32")
    return {
        "arforge": VERSION,
        "versions": {name: version(name) for name in LIBRARIES},
        "source": {path: study.bundle.sha256(path) for path in (float32.path, float32.weights)},
        "device": f"onnxruntime {version('onnxruntime')}, {platform.machine()} CPU",
        "requests": requests.to_json(),
        "method": job.rule.method,
        "percentile": job.rule.percentile if job.rule.method == "percentile" else None,
        "smooth": job.smooth,
        "excluded": sorted(excluded),
        "limits": study.limits,
    }
