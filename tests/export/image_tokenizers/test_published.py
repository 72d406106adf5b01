"""Published layouts, opened, exported and run, beside the maths of their publishers' ports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_images
import torch
from numpy.typing import NDArray
from tiny_images import CODES, Weights, emu3_names, llamagen, paint, taming, truncated, weights_of, within
from torch import Tensor

from arforge.export.exporter import export_image_tokenizer
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer
from arforge.export.image_tokenizers.opening import OpenedImageTokenizer, open_image_tokenizer

SHAPES = [(1, 4, 4), (2, 3, 5)]  # images, rows, columns
CELLS = 5000  # of an image whose attention is split
Values = Callable[[Tensor], Tensor]


def opened(folder: Path, weights: Weights) -> OpenedImageTokenizer:
    torch.save({"state_dict": weights}, folder / "x.ckpt")
    return open_image_tokenizer(folder / "x.ckpt", CODES)


def module_of(found: OpenedImageTokenizer) -> ImageTokenizer:
    model = found.module().eval()
    model.load_state_dict({name: found.parameter(name) for name in model.state_dict()})
    return model


def janus_values(tokens: Tensor) -> Tensor:
    model = tiny_images.janus()
    model.quantize.quant_state_dims = list(tokens.shape[1:])
    return model.decode(tokens.flatten(1))


def chameleon_values(tokens: Tensor) -> Tensor:
    return paint(tiny_images.chameleon(), tokens)


def emu3_values(tokens: Tensor) -> Tensor:
    return tiny_images.emu3().decode(tokens)


def check_images(found: NDArray[np.uint8], values: Tensor) -> None:
    expected = truncated(values)
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01  # where a value lies beside a whole number
    assert expected.std() > 20


LAYOUTS: dict[str, tuple[Callable[[], Weights], Values]] = {
    "janus": (lambda: within("gen_vision_model.", llamagen(weights_of(tiny_images.janus()))), janus_values),
    "janus of transformers": (lambda: within("model.vqmodel.", weights_of(tiny_images.janus())), janus_values),
    "chameleon": (tiny_images.chameleon, chameleon_values),
    "emu3": (lambda: emu3_names(weights_of(tiny_images.emu3())), emu3_values),
    "emu3 of transformers": (lambda: within("vqmodel.", weights_of(tiny_images.emu3())), emu3_values),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_published_layouts_images_are_its_publishers(tmp_path: Path, layout: str) -> None:
    weights, values = LAYOUTS[layout]
    model = module_of(opened(tmp_path, weights()))
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, CODES, (2, 3, 5)))
    check_images(model.decode(tokens).numpy(), values(tokens))


@torch.no_grad()
def test_llamagens_own_pixels_are_rounded(tmp_path: Path) -> None:
    model = module_of(opened(tmp_path, llamagen(weights_of(tiny_images.janus()))))
    tokens = torch.arange(CODES).view(2, 4, 4)
    expected = torch.clamp(127.5 * janus_values(tokens) + 128, 0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (model.decode(tokens).int() - expected.int()).abs().max() <= 1
    assert (model.decode(tokens) == expected).float().mean() > 0.99


@torch.no_grad()
def test_chameleons_tokens_are_the_nearest_codes_as_they_are(tmp_path: Path) -> None:
    theirs = tiny_images.janus(embed_dim=12)  # of which transformers' port looks for codes as Chameleon does
    pixels = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8))
    expected = theirs.encode(pixels.permute(0, 3, 1, 2) / 255.0 * 2 - 1).image_tokens.view(2, 4, 6)
    found = module_of(opened(tmp_path, taming(weights_of(theirs)))).encode(pixels)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 3


def run(graph: Path, **feeds: NDArray[np.generic]) -> NDArray[np.generic]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return np.asarray(onnxruntime.InferenceSession(graph, options).run(None, feeds)[0])


def exported(folder: Path, weights: Weights) -> Path:
    graphs = export_image_tokenizer(opened(folder, weights), folder, CELLS)
    names = ["decoder", "encoder"] if any("encoder." in name for name in weights) else ["decoder"]
    assert [graph.name for graph in graphs] == names
    return folder / "graphs/fp32"


@pytest.fixture(scope="module")
def emu3_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("emu3"), within("vqmodel.", weights_of(tiny_images.emu3())))


@pytest.fixture(scope="module")
def chameleon_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint without its encoder, and with what trained it."""
    weights = {name: tensor for name, tensor in tiny_images.chameleon().items() if not name.startswith("encoder.")}
    weights["loss.discriminator.main.0.weight"] = torch.zeros(3)
    return exported(tmp_path_factory.mktemp("chameleon"), weights)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("graphs", "values"), [("emu3_graphs", emu3_values), ("chameleon_graphs", chameleon_values)])
@torch.no_grad()
def test_an_exported_decoders_images_are_its_publishers(
    request: pytest.FixtureRequest, graphs: str, values: Values, shape: tuple[int, int, int]
) -> None:
    tokens = np.random.default_rng(3).integers(0, CODES, shape)
    found = run(request.getfixturevalue(graphs) / "decoder.onnx", tokens=tokens)
    check_images(found, values(torch.from_numpy(tokens)))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_an_exported_encoders_tokens_are_emu3s(emu3_graphs: Path, shape: tuple[int, int, int]) -> None:
    images, rows, columns = shape
    pixels = np.random.default_rng(5).integers(0, 256, (images, 2 * rows, 2 * columns, 3), dtype=np.uint8)
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0 * 2 - 1
    expected = tiny_images.emu3().encode(values, torch.tensor([pixels.shape[1:3]] * images)).image_tokens
    found = run(emu3_graphs / "encoder.onnx", images=pixels)
    np.testing.assert_array_equal(found, torch.stack(expected).numpy())
    assert len(np.unique(found)) > 2
