"""Folders of tiny Lumina-mGPT, Emu3 and Janus models with random weights, as their authors publish them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
}
LUMINA = {**LLAMA, "model_type": "chameleon", "vocab_size": 9000, "model_parallel_size": 2, "swin_norm": False}
EMU3 = {
    **LLAMA,
    "hidden_size": 40,
    "model_type": "Emu3",
    "vocab_size": 360,
    "max_position_embeddings": 200,
    "bos_token_id": 300,
    "img_token_id": 301,
    "boi_token_id": 302,
    "eoi_token_id": 309,
    "eol_token_id": 303,
    "image_area": 48 * 48,
}
"""50 image tokens, behind the token that ends an image; heads of 10 become 16 in graphs."""
CODES, CODE_WIDTH = 24, 6
JANUS: dict[str, Any] = {
    "model_type": "multi_modality",
    "language_config": {**LLAMA, "vocab_size": 300, "max_position_embeddings": 200},
    "gen_aligner_config": {"params": {"depth": 2, "projector_type": "mlp_gelu"}},
    "gen_head_config": {"params": {"image_token_embed": 40, "image_token_size": CODES}},
    "gen_vision_config": {"params": {"image_token_size": CODES, "n_embed": CODE_WIDTH}},
}
GRIDS = {"lumina": "4x6", "emu3": "3x5", "janus": "4x4"}  # of images, a family
JANUS_WORDS = ("<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>", "<|User|>", "<|Assistant|>")


def random(shape: tuple[int, ...], generator: torch.Generator, scale: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def llama_weights(config: Mapping[str, Any], seed: int, norm_groups: int | None = None) -> dict[str, Tensor]:
    """The tensors of a decoder, without what stands before its parts; greedy tokens vary from cell to cell.

    `norm_groups`: of heads that share the norms of queries and keys, of a model that has these.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, hidden, heads = (config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    key_width = dim // heads * config["num_key_value_heads"]
    weights = {"embed_tokens.weight": random((config["vocab_size"], dim), generator, 1.0)}
    widths = {"q": dim, "k": key_width, "v": key_width, "o": dim}
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        for part, width in widths.items():
            weights[f"{at}self_attn.{part}_proj.weight"] = random((width, dim), generator)
        for part, shape in {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}.items():
            weights[f"{at}mlp.{part}_proj.weight"] = random(shape, generator)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{part}.weight"] = 1 + random((dim,), generator)
        for part in ("q_norm", "k_norm") if norm_groups else ():
            shape = (norm_groups or 0, dim // heads)
            weights[f"{at}self_attn.{part}.weight"] = 1 + random(shape, generator)
            weights[f"{at}self_attn.{part}.bias"] = random(shape, generator)
    weights["norm.weight"] = 1 + random((dim,), generator)
    weights["lm_head.weight"] = random((config["vocab_size"], dim), generator)
    return weights


def janus_weights(seed: int, config: Mapping[str, Any] = JANUS) -> dict[str, Tensor]:
    """Those of the decoder, and of the table and the head of images."""
    generator = torch.Generator().manual_seed(seed + 1)
    weights = llama_weights(config["language_config"], seed)
    dim, hidden = config["language_config"]["hidden_size"], config["gen_head_config"]["params"]["image_token_embed"]
    weights["gen_embed.weight"] = random((CODES, CODE_WIDTH), generator, 1.0)
    sizes = {
        "gen_aligner.layers.0": (dim, CODE_WIDTH),
        "gen_aligner.layers.2": (dim, dim),
        "gen_head.output_mlp_projector": (hidden, dim),
        "gen_head.vision_head": (CODES, hidden),
    }
    for name, shape in sizes.items():
        weights[f"{name}.weight"] = random(shape, generator, 0.5)
        weights[f"{name}.bias"] = random(shape[:1], generator)
    return weights


def save_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], prefix: str = "model.") -> Path:
    """`prefix`: before the decoder's parts, of which the head of words has none."""
    folder.mkdir(exist_ok=True)
    parts = ("embed_tokens", "layers", "norm")
    stored = {f"{prefix if name.startswith(parts) else ''}{name}": value for name, value in weights.items()}
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_janus(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any] = JANUS) -> Path:
    """With a part that only sees images, and the head of words."""
    head = {"language_model.lm_head.weight": weights["lm_head.weight"], "vision_model.norm.weight": torch.ones(3)}
    others = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    return save_folder(folder, {**others, **head}, config, "language_model.model.")


def save_tokenizer(folder: Path, special: Mapping[str, int]) -> Path:
    """A `tokenizer.json` of bytes, one a token, and of special words at their ids, which are none of the first 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**{byte: number for number, byte in enumerate(alphabet)}, **special}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def save_family(family: str, folder: Path) -> Path:
    """A checkpoint's folder of a family of GRIDS, with random weights."""
    if family == "janus":
        save_janus(folder, janus_weights(seed=5))
        save_tokenizer(folder, dict(zip(JANUS_WORDS, range(270, 275), strict=True)))
        return folder
    if family == "emu3":
        return save_folder(folder, llama_weights(EMU3, seed=3), EMU3)
    return save_folder(folder, llama_weights(LUMINA, seed=1, norm_groups=2), LUMINA)
