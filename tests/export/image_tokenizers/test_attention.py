"""Attention in blocks of queries gives what attention at once gives, in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from arforge.export.image_tokenizers.attention import SCORES, attend_in_blocks, blocks_for

BLOCKS = 5


@pytest.fixture(scope="module")
def graphs(bundle: Path) -> Iterator[tuple[Path, Path]]:
    """The tiny bundle's decoder, and the same in blocks beside it, which goes again."""
    whole = bundle / "graphs/fp32/decoder.onnx"
    model = ir.load(whole)
    assert attend_in_blocks(model, BLOCKS) == 4
    ir.save(model, whole.with_name("blocks.onnx"))
    yield whole, whole.with_name("blocks.onnx")
    whole.with_name("blocks.onnx").unlink()


def test_scores_of_the_largest_published_images_are_bounded() -> None:
    assert [blocks_for(side * side) for side in (16, 24, 32, 48)] == [1, 1, 1, 2]
    assert blocks_for(8100) == 16
    assert all(4 * cells * -(-cells // blocks_for(cells)) <= 1.01 * SCORES for cells in (2304, 8100, 68 * 120))


def test_one_block_leaves_the_graph_as_it_is(bundle: Path) -> None:
    model = ir.load(bundle / "graphs/fp32/decoder.onnx")
    before = [node.name for node in model.graph]
    assert attend_in_blocks(model, 1) == 0
    assert [node.name for node in model.graph] == before


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 5, 7), (3, 1, 2), (1, 1, 1)])  # of fewer positions than blocks, too
def test_blocks_change_no_image(graphs: tuple[Path, Path], shape: tuple[int, int, int]) -> None:
    tokens = np.random.default_rng(0).integers(0, 32, shape)
    whole, blocks = (onnxruntime.InferenceSession(graph).run(None, {"tokens": tokens})[0] for graph in graphs)
    difference = np.abs(whole.astype(int) - blocks.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert len(np.unique(whole)) > 3


def test_no_block_holds_all_scores(graphs: tuple[Path, Path]) -> None:
    whole, blocks = (scores_of(graph, np.zeros((1, 8, 8), np.int64)) for graph in graphs)
    assert whole == [(1, 64, 64)] * 4
    assert sorted(blocks) == [(1, 12, 64)] * 4 + [(1, 13, 64)] * 4 * (BLOCKS - 1)


def scores_of(graph: Path, tokens: np.ndarray) -> list[tuple[int, ...]]:
    """The shapes of all that is a softmax while it runs."""
    model = ir.load(graph)
    softmaxes = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    model.graph.outputs[:] = softmaxes
    ir.save(model, graph.with_name("scores.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.with_name("scores.onnx"), options)
    graph.with_name("scores.onnx").unlink()
    return [scores.shape for scores in session.run(None, {"tokens": tokens})]
