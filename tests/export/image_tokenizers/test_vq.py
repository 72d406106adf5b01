from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import VQ_CONFIG

from arforge.export.image_tokenizers.vq import Codebook, VQConfig, VQModel

CONFIGS = [
    VQ_CONFIG,
    VQConfig(codebook_size=17, codebook_width=3, channels=32, multipliers=(1,), latent_channels=32),
    VQConfig(codebook_size=64, codebook_width=4, channels=32, multipliers=(2, 1, 3), residual_blocks=1),
    VQConfig(codebook_size=8, codebook_width=16, channels=64, multipliers=(1, 1, 2), residual_blocks=3),
    VQConfig(codebook_size=8, channels=32, multipliers=(1, 2, 3), attention=False, encoder=False),
    VQConfig(),
]


def shapes_of(config: VQConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VQModel(config).state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dimensions_are_read_off_the_tensors(config: VQConfig) -> None:
    assert VQConfig.infer(shapes_of(config)) == config


def test_the_published_tokenizer_has_its_names_and_shapes() -> None:
    shapes = shapes_of(VQConfig())
    assert VQConfig().downsampling == 16
    assert shapes["quantize.embedding.weight"] == (16384, 8)
    assert shapes["quant_conv.weight"] == (8, 256, 1, 1)
    assert shapes["post_quant_conv.weight"] == (256, 8, 1, 1)
    assert shapes["encoder.conv_blocks.4.res.0.conv1.weight"] == (512, 256, 3, 3)
    assert shapes["encoder.conv_blocks.4.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["encoder.conv_blocks.0.downsample.conv.weight"] == (128, 128, 3, 3)
    assert shapes["decoder.conv_blocks.0.attn.2.norm.weight"] == (512,)
    assert shapes["decoder.conv_blocks.0.upsample.conv.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.conv_blocks.4.res.2.conv2.weight"] == (128, 128, 3, 3)
    assert {name.split(".")[0] for name in shapes} == {
        "encoder",
        "decoder",
        "quantize",
        "quant_conv",
        "post_quant_conv",
    }


@pytest.mark.parametrize("missing", ["encoder.conv_in.weight", "quantize.embedding.weight", "decoder.conv_in.weight"])
def test_a_missing_tensor_is_named(missing: str) -> None:
    shapes = {name: shape for name, shape in shapes_of(VQ_CONFIG).items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        VQConfig.infer(shapes)


def test_the_nearest_code_has_the_largest_cosine() -> None:
    torch.manual_seed(0)
    book = Codebook(40, 6)
    z = F.normalize(torch.randn(3, 4, 5, 6), dim=-1)
    expected = (z @ F.normalize(book.embedding.weight, dim=-1).T).argmax(-1)
    assert torch.equal(book.nearest(z), expected)


@torch.no_grad()
def test_encoding_a_codes_own_vector_gives_the_code() -> None:
    book = Codebook(40, 6)
    assert torch.equal(book.nearest(book.vectors()), torch.arange(40))
    assert torch.allclose(book.vectors().norm(dim=-1), torch.ones(40))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1), (3, 5)])
def test_shapes_of_encoding_and_decoding(tokenizer_model: VQModel, grid: tuple[int, int]) -> None:
    tokens = torch.randint(0, 32, (2, *grid))
    images = tokenizer_model.decode(tokens)
    assert (images.shape, images.dtype) == ((2, 2 * grid[0], 2 * grid[1], 3), torch.uint8)
    again = tokenizer_model.encode(images)
    assert (again.shape, again.dtype) == (tokens.shape, torch.int64)
    assert 0 <= again.min() <= again.max() < 32


@torch.no_grad()
def test_pixels_are_the_decoders_output_scaled_and_clamped(tokenizer_model: VQModel) -> None:
    tokens = torch.arange(32).view(1, 4, 8)
    latent = tokenizer_model.quantize.vectors()[tokens]
    raw = 40 * tokenizer_model.decode_latent(latent)
    model = VQModel(VQ_CONFIG)
    model.load_state_dict(tokenizer_model.state_dict())
    for name in ("weight", "bias"):
        getattr(model.decoder.conv_out, name).mul_(40)
    expected = np.clip(127.5 * raw.numpy() + 128, 0, 255).transpose(0, 2, 3, 1)
    found = model.decode(tokens).numpy()
    assert np.abs(found - np.floor(expected)).max() <= 1
    assert (found == 0).any()
    assert (found == 255).any()


@torch.no_grad()
def test_pixels_reach_the_encoder_between_minus_one_and_one(
    tokenizer_model: VQModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = tokenizer_model.encoder.forward
    monkeypatch.setattr(tokenizer_model.encoder, "forward", lambda x: (seen.append(x), original(x))[1])
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).repeat(1, 4, 4, 1)
    tokenizer_model.encode(images)
    assert seen[0].shape == (1, 3, 4, 4)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
