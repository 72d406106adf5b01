"""Image tokenizers are found in what holds them, and what is none, or not whole, is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny_images
import torch
from safetensors.torch import save_file
from tiny_images import CODES, Weights, emu3_names, llamagen, taming, weights_of, within

from arforge.export.image_tokenizers.opening import OpenedImageTokenizer, open_image_tokenizer
from arforge.runner.errors import CheckpointError


def opened(folder: Path, weights: Weights, codes: int = CODES) -> OpenedImageTokenizer:
    torch.save({"state_dict": weights}, folder / "x.ckpt")
    return open_image_tokenizer(folder / "x.ckpt", codes)


def without(weights: Weights, beginning: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beginning)}


def test_a_models_folder_holds_its_tokenizer(tmp_path: Path) -> None:
    weights = within("gen_vision_model.", llamagen(weights_of(tiny_images.janus())))
    names = sorted(weights)
    for part, some in enumerate((names[:50], names[50:]), 1):
        save_file({name: weights[name] for name in some}, tmp_path / f"model-{part:05d}-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    found = open_image_tokenizer(tmp_path, CODES)
    assert found.checkpoint.notes[-1] == "took its image tokenizer, gen_vision_model.*"
    assert len(found.checkpoint.files) == 2
    assert not any(name.startswith(("lm_head", "language_model")) for name in found.checkpoint.tensors)
    expected = llamagen(weights_of(tiny_images.janus()))
    assert torch.equal(found.parameter("decoder.conv_in.weight"), expected["decoder.conv_in.weight"])


def test_what_layouts_differ_in_is_read_off_the_names(tmp_path: Path) -> None:
    janus = weights_of(tiny_images.janus())
    cases = {
        "llamagen": (llamagen(janus), (True, True, "rounded")),
        "janus": (within("gen_vision_model.", llamagen(janus)), (True, True, "truncated")),
        "janus of transformers": (within("model.vqmodel.", janus), (True, True, "truncated")),
        "taming": (taming(janus), (True, False, "truncated")),
        "chameleon": (tiny_images.chameleon(), (False, False, "truncated")),
    }
    for name, (weights, expected) in cases.items():
        config = asdict(opened(tmp_path, weights).config)  # type: ignore[call-overload]
        assert (config["attention"], config["normalized"], config["pixels"]) == expected, name
        assert (config["channels"], config["multipliers"], config["residual_blocks"]) == (32, (1, 2), 1), name


def test_emu3s_dimensions_are_read_off_the_tensors(tmp_path: Path) -> None:
    found = opened(tmp_path, emu3_names(weights_of(tiny_images.emu3())))
    assert found.kind.kind == "vision-vq"
    assert asdict(found.config) == {  # type: ignore[call-overload]
        "codebook_size": CODES,
        "codebook_width": 4,
        "channels": 32,
        "multipliers": (1, 2),
        "latent_channels": 4,
        "residual_blocks": 1,
        "attention": True,
        "encoder": True,
        "halvings": 2,
    }


def test_without_its_encoder_a_tokenizer_decodes(tmp_path: Path) -> None:
    found = opened(tmp_path, without(tiny_images.chameleon(), "encoder."))
    assert not found.config.encoder
    assert "left out what decodes no images: quant_conv.weight, quant_conv.bias" in found.checkpoint.notes


REFUSED: dict[str, tuple[Callable[[], Weights], int, str]] = {
    "an encoder alone": (
        lambda: within("model.vqmodel.", without(tiny_images.chameleon(), "decoder.")),
        CODES,
        "has the encoder of an image tokenizer and no decoder, .*: use the checkpoint of the whole tokenizer",
    ),
    "cut": (
        lambda: without(tiny_images.chameleon(), "decoder.up.1.block.0.norm1."),
        CODES,
        r"is not a VQ tokenizer checkpoint of these dimensions: missing decoder.up.1.block.0.norm1.weight, ",
    ),
    "cut inside a model": (
        lambda: within("vqmodel.", without(weights_of(tiny_images.emu3()), "decoder.time_conv.0.conv.conv.bias")),
        CODES,
        r"is not a VisionVQ tokenizer checkpoint .*missing vqmodel.decoder.time_conv.0.conv.conv.bias",
    ),
    "other codes": (tiny_images.chameleon, 33, f"has {CODES} codes, the model 33 tokens"),
    "a model alone": (lambda: within("", {}), CODES, "is not a VQ tokenizer checkpoint"),
    "no convolutions over time": (
        lambda: without(emu3_names(weights_of(tiny_images.emu3())), "decoder.time_res_stack."),
        CODES,
        r"missing decoder.time_res_stack.0.norm1.weight",
    ),
    "other vectors": (
        lambda: {**emu3_names(weights_of(tiny_images.emu3())), "quantize.embedding.weight": torch.zeros(CODES, 5)},
        CODES,
        "4 latent channels for codes of 5: they must be as many",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_tokenizer_is_refused(tmp_path: Path, case: str) -> None:
    weights, codes, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, weights(), codes)
