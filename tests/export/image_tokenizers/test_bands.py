"""A decoder in bands of rows paints what it paints at once, and holds no activations of all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_images
import torch
from tiny_images import CODES, emu3_names, taming, weights_of

from arforge.export.exporter import export_image_tokenizer
from arforge.export.image_tokenizers.bands import BAND, bands_for, decode_in_bands
from arforge.export.image_tokenizers.opening import open_image_tokenizer

BANDS = 4
WEIGHTS = {
    "emu3": lambda: emu3_names(weights_of(tiny_images.emu3())),
    "chameleon": tiny_images.chameleon,
    "janus": lambda: taming(weights_of(tiny_images.janus())),
}


@pytest.fixture(scope="module", params=WEIGHTS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder, and the same in bands."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.save({"state_dict": WEIGHTS[request.param]()}, folder / "x.ckpt")
    export_image_tokenizer(open_image_tokenizer(folder / "x.ckpt", CODES), folder, cells=16)
    whole = folder / "graphs/fp32/decoder.onnx"
    model = ir.load(whole)
    assert decode_in_bands(model, BANDS) > 5
    ir.save(model, whole.with_name("bands.onnx"))
    return whole, whole.with_name("bands.onnx")


# of fewer rows of tokens than bands, too, some of which are empty then
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 5), (1, 4, 3), (2, 3, 6), (1, 2, 2), (1, 1, 1)])
def test_bands_change_no_image(graphs: tuple[Path, Path], shape: tuple[int, int, int]) -> None:
    tokens = np.random.default_rng(0).integers(0, CODES, shape)
    whole, bands = (onnxruntime.InferenceSession(graph).run(None, {"tokens": tokens})[0] for graph in graphs)
    difference = np.abs(whole.astype(int) - bands.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert len(np.unique(whole)) > 8


def test_no_convolution_is_given_all_rows(graphs: tuple[Path, Path]) -> None:
    whole, bands = (rows_convolved(graph, np.zeros((1, 8, 8), np.int64)) for graph in graphs)
    assert max(whole) == 16
    assert max(bands) == 8  # of the lowest resolution, which stays whole; a band has 4, and a row on either side


def rows_convolved(graph: Path, tokens: np.ndarray) -> set[int]:
    """The heights of all that a convolution takes while it runs."""
    model = ir.load(graph)
    model.graph.outputs[:] = {node.inputs[0]: None for node in model.graph if node.op_type == "Conv"}
    ir.save(model, graph.with_name("inputs.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.with_name("inputs.onnx"), options)
    return {given.shape[2] for given in session.run(None, {"tokens": tokens})}


def test_bands_are_as_many_as_the_largest_activations_need(graphs: tuple[Path, Path]) -> None:
    model = ir.load(graphs[0])
    assert bands_for(model, 16) == 1
    cells = 100 * BAND // (64 * 2 * 2 * 4)  # 64 channels of four bytes at twice the tokens' resolution
    assert bands_for(model, cells) == 100


def test_one_band_leaves_the_graph_as_it_is(graphs: tuple[Path, Path]) -> None:
    model = ir.load(graphs[0])
    before = [node.name for node in model.graph]
    assert decode_in_bands(model, 1) == 0
    assert [node.name for node in model.graph] == before
