"""Smoothing moves scales between activations and weights, and leaves the float32 function as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arforge.calibration.agreement import teacher_forced
from arforge.calibration.layers import activations, find_layers
from arforge.calibration.quantize import write_graphs
from arforge.calibration.ranges import ChannelMaxima
from arforge.calibration.requests import generate, spread
from arforge.calibration.smooth import Fold, find_folds, smooth, smoothing
from arforge.calibration.taps import TappedEngine
from arforge.runner import Bundle, open_bundle
from arforge.runner.bundle import Graph
from arforge.runner.errors import CalibrationError

BUNDLES = {"bundle": "zipar:4", "grouped_bundle": "ntp", "par_bundle": "par:4", "arpg_bundle": "arpg:6"}


def quiet(what: str, done: int, total: int) -> None: ...


def channel_maxima(bundle: Bundle, schedule: str, graph: Path) -> ChannelMaxima:
    """Of the activations of a graph that stands beside its weights."""
    alone = replace(bundle, root=graph.parent, graphs=(Graph("step", "fp32", graph.name, "weights/model.weights"),))
    layers = find_layers(onnx.load(graph, load_external_data=False).graph)
    maxima = ChannelMaxima()
    requests = spread(bundle, [schedule], 4, seed=0, guidance=2.0, batch=4)
    dict(generate(bundle, TappedEngine(alone, list(activations(layers)), maxima, threads=1), requests, "test", quiet))
    return maxima


@pytest.mark.parametrize("name", BUNDLES)
def test_smoothing_leaves_the_float32_function_and_evens_out_channels(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = open_bundle(request.getfixturevalue(name))
    path = bundle.graph("step-logits", "fp32")
    model = onnx.load(path)
    layers = find_layers(model.graph)
    folds = find_folds(model.graph, layers)
    before = channel_maxima(bundle, BUNDLES[name], path).maxima
    scales = smoothing(model.graph, path.parent, folds, before, alpha=0.5)
    smooth(model, folds, scales)
    write_graphs(model, tmp_path)
    graph = Graph("step-logits", "int8", "step-logits.onnx", "weights/model.weights")
    smoothed = replace(bundle, root=tmp_path, graphs=(graph,))
    requests = spread(bundle, [BUNDLES[name]], 2, seed=9, guidance=2.0, batch=2)
    (found,) = teacher_forced(bundle, smoothed, requests, "test", quiet, threads=1)
    assert found.tokens == 2 * bundle.model.cells
    assert found.logit_error < 2e-5
    assert found.top1 > 0.99
    after = channel_maxima(bundle, BUNDLES[name], tmp_path / "step-logits.onnx").maxima
    for activation, seen in before.items():
        expected = seen / scales[activation] if activation in scales else seen
        np.testing.assert_allclose(after[activation], expected, rtol=2e-3, atol=1e-5)
    spreads = [seen.max() / np.median(seen) for seen in (before[folds[0].activation], after[folds[0].activation])]
    assert spreads[1] < spreads[0]


def test_norms_and_gates_are_folded_and_attention_is_left(bundle: Path, arpg_bundle: Path) -> None:
    graph = onnx.load(bundle / "graphs/fp32/step.onnx", load_external_data=False).graph
    found = {fold.into: fold.readers for fold in find_folds(graph, find_layers(graph))}
    assert len(found) == 2 * 3 + 1
    layer = "layers.1"
    assert found[f"{layer}.attention_norm.weight"] == (f"{layer}.attention.wqkv.weight",)
    gate = tuple(f"{layer}.feed_forward.{name}.weight" for name in ("w1", "w3"))
    assert found[f"{layer}.ffn_norm.weight"] == gate
    assert found[gate[1]] == (f"{layer}.feed_forward.w2.weight",)
    assert found["norm.weight"] == ("output.weight",)
    assert not any("wo" in reader for readers in found.values() for reader in readers)
    graph = onnx.load(arpg_bundle / "graphs/fp32/step.onnx", load_external_data=False).graph
    found = {fold.into: fold.readers for fold in find_folds(graph, find_layers(graph))}
    attention = "layers.self_dec.0.attn"
    assert found["layers.self_dec.0.attn_norm.weight"] == tuple(f"{attention}.to_{n}.weight" for n in "qkv")
    assert found["layers.norm.weight"] == ("layers.to_k.weight", "layers.to_v.weight")


def test_scales_are_those_of_the_paper(bundle: Path) -> None:
    """`max|X_j|^alpha / max|W_j|^(1 - alpha)`, over all readers, of the gate's layer as its own fold leaves it."""
    path = bundle / "graphs/fp32/step.onnx"
    graph = onnx.load(path).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folds = find_folds(graph, find_layers(graph))
    random = np.random.default_rng(0)
    maxima = {
        fold.activation: random.uniform(0.5, 9, len(weights[fold.readers[0]])).astype(np.float32) for fold in folds
    }
    norm = next(fold for fold in folds if fold.into == "layers.0.ffn_norm.weight")
    gate = next(fold for fold in folds if fold.into == "layers.0.feed_forward.w3.weight")
    maxima[norm.activation][3] = 0
    scales = smoothing(graph, path.parent, folds, maxima, alpha=0.75)
    rows = np.abs(weights[gate.readers[0]]).max(1)
    np.testing.assert_allclose(scales[gate.activation], maxima[gate.activation] ** 0.75 / rows**0.25, rtol=1e-5)
    w1, w3 = (np.abs(weights[name]) for name in norm.readers)
    rows = np.maximum(w1.max(1), (w3 / scales[gate.activation]).max(1))
    expected = maxima[norm.activation] ** 0.75 / rows**0.25
    expected[3] = 1  # a channel that is always zero stays
    np.testing.assert_allclose(scales[norm.activation], expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_an_alpha_that_moves_nothing_or_all_is_refused(bundle: Path, alpha: float) -> None:
    graph = onnx.load(bundle / "graphs/fp32/step.onnx", load_external_data=False).graph
    with pytest.raises(CalibrationError, match="smoothing .* is out of range"):
        smoothing(graph, bundle, [Fold("x", "n", ("w",))], {"x": np.ones(2, np.float32)}, alpha)
