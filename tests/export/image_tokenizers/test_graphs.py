from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from arforge.export.image_tokenizers.vq import VQModel
from arforge.runner import Runner

SHAPES = [(1, 8, 8), (2, 8, 8), (5, 8, 8), (2, 5, 11)]  # images, rows, columns; the model's grid and another


def run(bundle: Path, name: str, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle / f"graphs/fp32/{name}.onnx", options)
    assert len(session.get_outputs()) == 1
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_decoder_graph_and_torch_module_paint_alike(
    bundle: Path, tokenizer_model: VQModel, shape: tuple[int, int, int]
) -> None:
    images, rows, columns = shape
    tokens = np.random.default_rng(images).integers(0, 32, shape)
    found = run(bundle, "decoder", tokens=tokens)
    expected = tokenizer_model.decode(torch.from_numpy(tokens)).numpy()
    assert (found.shape, found.dtype) == ((images, 2 * rows, 2 * columns, 3), np.uint8)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert found.std() > 3


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_encoder_graph_and_torch_module_read_the_same_tokens(
    bundle: Path, tokenizer_model: VQModel, shape: tuple[int, int, int]
) -> None:
    images, rows, columns = shape
    pixels = np.random.default_rng(images).integers(0, 256, (images, 2 * rows, 2 * columns, 3), dtype=np.uint8)
    found = run(bundle, "encoder", images=pixels)
    np.testing.assert_array_equal(found, tokenizer_model.encode(torch.from_numpy(pixels)).numpy())
    assert (found.shape, found.dtype) == (shape, np.int64)
    assert len(np.unique(found)) > 3


def test_the_runner_gives_the_decoders_images_of_its_tokens(bundle: Path, runner: Runner) -> None:
    result = runner.generate([1, 2, 3], schedule="zipar:4", batch=2)
    assert result.images is not None
    np.testing.assert_array_equal(result.images, run(bundle, "decoder", tokens=result.tokens.reshape(3, 8, 8)))
