"""Makes the float16 or bfloat16 graphs of a bundle from its float32 ones."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from arforge.engines.precision import TYPES, lower_precision
from arforge.engines.tensorrt_graph import content_of, place_weights
from arforge.export.wide_weights import widen
from arforge.runner.bundle import Bundle, Graph
from arforge.runner.bundle.writer import replace_file

WEIGHTS = "weights/model.weights"


def has_graphs(bundle: Bundle, precision: str) -> bool:
    """Whether there are step graphs of that precision; a text encoder's may stand alone."""
    return any(graph.key == (bundle.sampler.graph, precision) for graph in bundle.graphs)


def add_graphs(bundle: Bundle, precision: str) -> list[Path]:
    """Enter the step graphs of that precision, which share one weights file; returns the new files.

    The manifest is left to the caller, who enters them by `entries`. Raises EngineError for a weight that the
    precision cannot hold.
    """
    models = {name: ir.load(bundle.graph(name, "fp32")) for name in names_of(bundle)}
    for model in models.values():
        widen(model)
        lower_precision(model, TYPES[precision])
    folder = bundle.path(f"graphs/{precision}")
    place_weights(models, folder, lambda partial: partial.replace(folder / WEIGHTS))
    for name, model in models.items():
        replace_file(folder / f"{name}.onnx", content_of(model))
    return [folder / WEIGHTS, *(folder / f"{name}.onnx" for name in models)]


def names_of(bundle: Bundle) -> tuple[str, str]:
    return bundle.sampler.graph, "step-logits"


def entries(bundle: Bundle, precision: str) -> tuple[Graph, ...]:
    """The manifest's entries of those graphs."""
    folder = f"graphs/{precision}"
    return tuple(Graph(name, precision, f"{folder}/{name}.onnx", f"{folder}/{WEIGHTS}") for name in names_of(bundle))
