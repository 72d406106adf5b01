"""Exports models of full size from sparse files: peak memory and time. Needs no weights: all are zero.

python bench/export_memory.py --work FOLDER --output FILE.json [--family emu3 …]
                                [--stored fp32] [--precision int4 …]

The checkpoint's shards have their true sizes and no blocks on disk. Each command runs in a process of its own, whose
peak is what the system counts as its largest resident set (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHARD = 5 << 30  # bytes at which a shard is full
LIBRARIES = ("arforge", "torch", "onnx-ir", "onnxscript", "onnxruntime", "safetensors")
LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu"}
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
}  # fmt: skip
"""By family, the grid and what `config.json` says of the published size."""
BYTES = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}


def sparse_checkpoint(folder: Path, shapes: Mapping[str, tuple[int, ...]], stored: str) -> int:
    """Write shards of zeros that take no space, and their index; returns the number of parameters."""
    folder.mkdir(parents=True)
    kind, size = BYTES[stored]
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if filled and filled + size * math.prod(shape) > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size * math.prod(shape)
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, end = {}, 0
        for name, shape in shard.items():
            start, end = end, end + size * math.prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
            places[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(math.prod(shape) for shape in shapes.values())


def shapes_of(family: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The published tensors of a model of these dimensions."""
    dim, hidden, heads = (config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    keys, vocabulary = dim // heads * config["num_key_value_heads"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, dim)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for part, width in {"q": dim, "k": keys, "v": keys}.items():
            shapes[f"{at}self_attn.{part}_proj.weight"] = (width, dim)
        shapes[f"{at}self_attn.o_proj.weight"] = (dim, dim)
        for part, shape in {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}.items():
            shapes[f"{at}mlp.{part}_proj.weight"] = shape
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{part}.weight"] = (dim,)
        for part in ("q_norm", "k_norm") if family == "lumina" else ():
            shapes[f"{at}self_attn.{part}.weight"] = shapes[f"{at}self_attn.{part}.bias"] = (1, dim // heads)
    return {**shapes, "model.norm.weight": (dim,), "lm_head.weight": (vocabulary, dim)}


def checkpoint_of(family: str, stored: str, work: Path) -> tuple[Path, int]:
    """A checkpoint folder, and the number of parameters."""
    folder, config = work / f"{family}-{stored}", MODELS[family][1]
    shutil.rmtree(folder, ignore_errors=True)
    parameters = sparse_checkpoint(folder, shapes_of(family, config), stored)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, parameters


def measured(*command: str | Path) -> dict[str, Any]:
    """What a command of arforge took, as a process of its own."""
    start = time.perf_counter()
    arguments = [str(argument) for argument in command]
    child = subprocess.Popen([sys.executable, "-m", "arforge", *arguments], stdout=subprocess.PIPE, text=True)
    said = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"arforge {' '.join(arguments)} failed with status {child.returncode}")
    return {
        "command": ["arforge", *arguments],
        "said": said.strip().splitlines(),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def measure(family: str, stored: str, precision: str, work: Path, *, keep: bool) -> dict[str, Any]:
    folder, parameters = checkpoint_of(family, stored, work)
    bundle = work / f"{family}-{precision}.bundle"
    export = measured(
        "export", family, "--checkpoint", folder, "--grid", MODELS[family][0], "--precision", precision,
        "--schedule", "ntp", "--output", bundle, "--overwrite",
    )  # fmt: skip
    size = sum(path.stat().st_size for path in bundle.rglob("*.weights"))
    if not keep:
        shutil.rmtree(bundle)
    shutil.rmtree(folder)
    return {
        "family": family,
        "stored": stored,
        "precision": precision,
        "parameters": parameters,
        "weights_bytes": size,
        "export": export,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--family", choices=MODELS, action="append")
    parser.add_argument("--stored", choices=BYTES, default="fp32", help="what the checkpoint is stored as")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8", "int4"), action="append")
    parser.add_argument("--keep", action="store_true", help="leave the bundles there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    for family in options.family or ["emu3"]:
        for precision in options.precision or ["int4"]:
            found.append(measure(family, options.stored, precision, options.work, keep=options.keep))
            print(json.dumps(found[-1], indent=1), flush=True)
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {name: version(name) for name in LIBRARIES},
        "results": found,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
