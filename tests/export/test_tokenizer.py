from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from arforge.export.vq import VQModel
from arforge.runner import Runner


def run(bundle: Path, name: str, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle / f"graphs/fp32/{name}.onnx", options)
    assert len(session.get_outputs()) == 1
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("images", [1, 2, 5])
@torch.no_grad()
def test_decoder_graph_and_torch_module_paint_alike(bundle: Path, tokenizer_model: VQModel, images: int) -> None:
    tokens = np.random.default_rng(images).integers(0, 32, (images, 64))
    found = run(bundle, "decoder", tokens=tokens)
    expected = tokenizer_model.decode(torch.from_numpy(tokens), (8, 8)).numpy()
    assert (found.shape, found.dtype) == ((images, 16, 16, 3), np.uint8)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert found.std() > 3


@pytest.mark.parametrize("images", [1, 2, 5])
@torch.no_grad()
def test_encoder_graph_and_torch_module_read_the_same_tokens(
    bundle: Path, tokenizer_model: VQModel, images: int
) -> None:
    pixels = np.random.default_rng(images).integers(0, 256, (images, 16, 16, 3), dtype=np.uint8)
    found = run(bundle, "encoder", images=pixels)
    np.testing.assert_array_equal(found, tokenizer_model.encode(torch.from_numpy(pixels)).numpy())
    assert (found.shape, found.dtype) == ((images, 64), np.int64)
    assert len(np.unique(found)) > 3


def test_the_runner_gives_the_decoders_images_of_its_tokens(bundle: Path, runner: Runner) -> None:
    result = runner.generate([1, 2, 3], schedule="zipar:4", batch=2)
    assert result.images is not None
    np.testing.assert_array_equal(result.images, run(bundle, "decoder", tokens=result.tokens))
