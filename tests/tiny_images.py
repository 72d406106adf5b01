"""Tiny image tokenizers with random weights, as they are published, and what Chameleon makes of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Emu3VQVAEConfig, JanusVQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

CODES, CHANNELS, LATENT = 32, 32, 16
Weights = dict[str, Tensor]


def randomize(model: nn.Module, seed: int) -> None:
    """Weights with which images vary over all of their range."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            values = torch.randn(tensor.shape, generator=random)
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                values = 0.5 + values.abs()
            elif name.endswith(("bias", "running_mean")):
                values *= 0.1
            elif tensor.dim() == 1:
                values = 1 + 0.2 * values
            elif "embedding" not in name:
                gain = 6.0 if "quant_conv" in name else 2.0 if "decoder.conv_out" in name else 1.2
                values *= gain / values[0].numel() ** 0.5
            tensor.copy_(values)


def janus(**changes: Any) -> JanusVQVAE:
    """transformers' port: LlamaGen's maths under other names."""
    dimensions = {
        "num_embeddings": CODES,
        "embed_dim": 8,
        "base_channels": CHANNELS,
        "latent_channels": LATENT,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "double_latent": False,
        "num_patches": 4,
    }
    model = JanusVQVAE(JanusVQVAEConfig(**{**dimensions, **changes})).eval()
    randomize(model, 11)
    return model


def emu3() -> Emu3VQVAE:
    """transformers' port, which computes all frames of a video."""
    config = Emu3VQVAEConfig(
        codebook_size=CODES, base_channels=CHANNELS, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[1],
        hidden_size=2 * CHANNELS, num_attention_heads=1, attn_implementation="eager",
    )  # fmt: skip
    model = Emu3VQVAE(config).eval()
    randomize(model, 12)
    return model


def weights_of(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def within(prefix: str, weights: Weights) -> Weights:
    """A model that they are a part of."""
    model = {"language_model.embed_tokens.weight": torch.zeros(4, 4), "lm_head.weight": torch.zeros(4, 4)}
    return {**{f"{prefix}{name}": tensor for name, tensor in weights.items()}, **model}


def taming(weights: Weights) -> Weights:
    """The names of "taming transformers" for those of transformers' Janus: `up.0` is the highest resolution."""
    other = {"decoder.up.0.": "decoder.up.1.", "decoder.up.1.": "decoder.up.0."}
    return {other.get(name[:13], name[:13]) + name[13:]: tensor for name, tensor in weights.items()}


def llamagen(weights: Weights) -> Weights:
    """LlamaGen's, and Janus's own, for those of transformers' Janus."""
    middle = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    taken = {}
    for name, tensor in weights.items():
        own = name.replace(".down.", ".conv_blocks.").replace(".up.", ".conv_blocks.").replace(".block.", ".res.")
        for theirs, number in middle.items():
            own = own.replace(theirs, number)
        taken[own] = tensor
    return taken


def chameleon() -> Weights:
    """Attention is in the middle alone, and the codebook is not of unit vectors."""
    found = taming(weights_of(janus(embed_dim=12)))
    return {name: tensor for name, tensor in found.items() if ".attn." not in name}


def emu3_names(weights: Weights) -> Weights:
    """Emu3's own for those of transformers' port."""
    pairs = {
        "down_block.down": "down", "up_block.up": "up", "middle_block.attn_norm": "mid.attn_1.norm",
        "middle_block": "mid", "attn_norms.0": "attn.0.norm", "attn_norms.1": "attn.1.norm",
        "out_proj": "proj_out", "q_proj": "q", "k_proj": "k", "v_proj": "v",
    }  # fmt: skip
    taken = {}
    for name, tensor in weights.items():
        own = name
        for theirs, ours in pairs.items():
            own = own.replace(theirs, ours)
        taken[own] = tensor[:, :, None, None] if name.endswith("_proj.weight") else tensor
    return taken


def paint(weights: Weights, tokens: Tensor) -> Tensor:
    """Chameleon's decoder, by its tensors' names: values [images, 3, height, width] of tokens."""

    def convolve(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def residual(x: Tensor, name: str) -> Tensor:
        h = convolve(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = convolve(F.silu(norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (convolve(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in weights else x)

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = (convolve(norm(x, f"{name}.norm"), f"{name}.{part}").flatten(2).transpose(1, 2) for part in "qkv")
        answers = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + convolve(answers.reshape(x.shape), f"{name}.proj_out")

    x = weights["quantize.embedding.weight"][tokens].permute(0, 3, 1, 2)
    x = convolve(convolve(x, "post_quant_conv"), "decoder.conv_in")
    x = residual(attend(residual(x, "decoder.mid.block_1"), "decoder.mid.attn_1"), "decoder.mid.block_2")
    for level in (1, 0):
        for block in (0, 1):
            x = residual(x, f"decoder.up.{level}.block.{block}")
        if level:
            x = convolve(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"decoder.up.{level}.upsample.conv")
    return convolve(F.silu(norm(x, "decoder.norm_out")), "decoder.conv_out")


def truncated(values: Tensor) -> NDArray[np.uint8]:
    """[images, height, width, 3] as Chameleon, Emu3 and Janus make them of values [images, 3, height, width]."""
    return (((values.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
