"""Checkpoints of the published sizes and layouts without anybody's weights: of zeros that take no space, or random.

python bench/checkpoints.py janus FOLDER

Both are written tensor by tensor, so that memory is that of one block. Zeros tell what an export takes. A library that
loads weights needs random ones: ONNX Runtime keeps packed weights that are alike once.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

SHARD = 5 << 30  # bytes at which a shard is full
BLOCK = 1 << 24  # numbers that are made at once
LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu"}
JANUS = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lumina": (
        "48x48",
        {
            **LLAMA, "model_type": "chameleon", "intermediate_size": 11008, "num_key_value_heads": 32,
            "vocab_size": 65536, "model_parallel_size": 1, "swin_norm": False, "max_position_embeddings": 4096,
        },
    ),
    "emu3": (
        "90x90",
        {
            **LLAMA, "model_type": "Emu3", "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 184622,
            "max_position_embeddings": 9216, "image_area": 720 * 720,
        },
    ),
    "janus": (
        "24x24",
        {
            "model_type": "multi_modality",
            "language_config": {
                **JANUS, "intermediate_size": 5632, "vocab_size": 102400, "max_position_embeddings": 16384,
            },
            "gen_aligner_config": {"params": {"depth": 2, "projector_type": "mlp_gelu"}},
            "gen_head_config": {"params": {"image_token_embed": 2048, "image_token_size": 16384}},
            "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        },
    ),
}  # fmt: skip
"""By family, the grid and what `config.json` says: Lumina-mGPT-7B, Emu3-Gen, Janus-Pro-1B."""
BYTES = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}
Shapes = dict[str, tuple[int, ...]]
Content = Literal["zeros", "random"]


def shapes_of(family: str) -> Shapes:
    """The published tensors of a model of these dimensions; image tokenizers are left out."""
    config = MODELS[family][1]
    if family == "janus":
        return {**decoder_shapes(config["language_config"], "language_model."), **janus_shapes(config)}
    shapes = decoder_shapes(config, "")
    if family == "lumina":
        size = config["hidden_size"] // config["num_attention_heads"]
        for layer in range(config["num_hidden_layers"]):
            for part in ("q_norm", "k_norm"):
                at = f"model.layers.{layer}.self_attn.{part}"
                shapes[f"{at}.weight"] = shapes[f"{at}.bias"] = (1, size)
    return shapes


def decoder_shapes(config: Mapping[str, Any], prefix: str) -> Shapes:
    dim, hidden, heads = (config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    keys, vocabulary = dim // heads * config["num_key_value_heads"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, dim)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for part, width in {"q": dim, "k": keys, "v": keys}.items():
            shapes[f"{at}self_attn.{part}_proj.weight"] = (width, dim)
        shapes[f"{at}self_attn.o_proj.weight"] = (dim, dim)
        for part, shape in {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}.items():
            shapes[f"{at}mlp.{part}_proj.weight"] = shape
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{part}.weight"] = (dim,)
    shapes |= {"model.norm.weight": (dim,), "lm_head.weight": (vocabulary, dim)}
    return {prefix + name: shape for name, shape in shapes.items()}


def janus_shapes(config: Mapping[str, Any]) -> Shapes:
    """What draws, beside the language model."""
    dim, codes = config["language_config"]["hidden_size"], config["gen_vision_config"]["params"]
    vocabulary, width = codes["image_token_size"], codes["n_embed"]
    sizes = {
        "gen_aligner.layers.0": (dim, width),
        "gen_aligner.layers.2": (dim, dim),
        "gen_head.output_mlp_projector": (dim, dim),
        "gen_head.vision_head": (vocabulary, dim),
    }
    shapes: Shapes = {"gen_embed.weight": (vocabulary, width)}
    for name, shape in sizes.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def write_checkpoint(family: str, folder: Path, stored: str = "bf16", content: Content = "random") -> int:
    """Write a folder in the published layout, in place of one that is there; returns the number of parameters."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shapes, size = shapes_of(family), BYTES[stored][1]
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if filled and filled + size * math.prod(shape) > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size * math.prod(shape)
    random = np.random.default_rng(0)
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file)
        with (folder / file).open("wb") as out:
            write_header(out, shard, stored)
            for name, shape in shard.items():
                if content == "zeros":
                    out.seek(size * math.prod(shape), 1)
                else:
                    write_random(out, name, shape, stored, random)
            out.truncate(out.tell())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(MODELS[family][1]))
    return sum(math.prod(shape) for shape in shapes.values())


def write_header(out: BinaryIO, shard: Shapes, stored: str) -> None:
    (kind, size), header, end = BYTES[stored], {}, 0
    for name, shape in shard.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    out.write(len(text).to_bytes(8, "little") + text)


def write_random(out: BinaryIO, name: str, shape: tuple[int, ...], stored: str, random: np.random.Generator) -> None:
    """Of a norm ones, of a bias zeros, else a normal distribution that keeps activations about their size."""
    fixed = 1.0 if "norm" in name and name.endswith(".weight") else 0.0 if name.endswith(".bias") else None
    left = math.prod(shape)
    while left:
        count = min(left, BLOCK)
        if fixed is None:
            values = random.standard_normal(count, np.float32)
            values *= np.float32(shape[-1] ** -0.5)
        else:
            values = np.full(count, fixed, np.float32)
        if stored == "bf16":
            (values.view(np.uint32) >> 16).astype(np.uint16).tofile(out)
        else:
            values.astype(np.float32 if stored == "fp32" else np.float16).tofile(out)
        left -= count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stored", choices=BYTES, default="bf16")
    options = parser.parse_args()
    count = write_checkpoint(options.family, options.folder, options.stored)
    print(f"{options.folder}: {count} parameters, grid {MODELS[options.family][0]}")


if __name__ == "__main__":
    main()
