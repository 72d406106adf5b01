"""Exports, and builds, models of full size from sparse files: peak memory and time. Needs no weights: all are zero.

python bench/export_memory.py --work FOLDER --output FILE.json [--model emu3-sized …]
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
# Dimensions of the models with the largest tables, as families that every tree of arforge has.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "emu3-sized": (
        "llamagen",
        {
            "dim": 4096, "n_layer": 32, "n_head": 32, "n_kv_head": 8, "vocab_size": 32768, "num_classes": 151853,
            "multiple_of": 256, "ffn_dim_multiplier": 1.3125, "grid": [90, 90],
        },
    ),
    "lumina-sized": (
        "llamagen",
        {"dim": 4096, "n_layer": 32, "n_head": 32, "vocab_size": 8192, "num_classes": 57343, "grid": [48, 48]},
    ),
    "small": (
        "llamagen",
        {"dim": 1024, "n_layer": 2, "n_head": 16, "vocab_size": 16384, "num_classes": 1000, "grid": [24, 24]},
    ),
}  # fmt: skip
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


def checkpoint_of(model: str, stored: str, work: Path) -> tuple[Path, Path, int]:
    """A checkpoint folder, the dimensions' file, and the number of parameters."""
    from arforge.export.config import read_config
    from arforge.export.families import FAMILIES

    name, dimensions = MODELS[model]
    family = FAMILIES[name]
    config = work / f"{model}.json"
    config.write_text(json.dumps(dimensions))
    folder = work / f"{model}-{stored}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder, config, sparse_checkpoint(folder, family.checkpoint_shapes(read_config(config, family)), stored)


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


def measure(model: str, stored: str, precision: str, work: Path, *, keep: bool) -> dict[str, Any]:
    folder, config, parameters = checkpoint_of(model, stored, work)
    bundle = work / f"{model}-{precision}.bundle"
    export = measured(
        "export", MODELS[model][0], "--checkpoint", folder, "--config", config, "--precision", precision,
        "--schedule", "ntp", "--output", bundle, "--overwrite",
    )  # fmt: skip
    built = {}
    if precision in ("int8", "int4"):
        built = {"build": measured("build", bundle, "--precision", precision)}
    size = sum(path.stat().st_size for path in bundle.rglob("*.weights"))
    if not keep:
        shutil.rmtree(bundle)
    shutil.rmtree(folder)
    return {
        "model": model,
        "stored": stored,
        "precision": precision,
        "parameters": parameters,
        "weights_bytes": size,
        "export": export,
        **built,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--stored", choices=BYTES, default="fp32", help="what the checkpoint is stored as")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8", "int4"), action="append")
    parser.add_argument("--keep", action="store_true", help="leave the bundles there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    for model in options.model or ["emu3-sized"]:
        for precision in options.precision or ["int4"]:
            found.append(measure(model, options.stored, precision, options.work, keep=options.keep))
            print(json.dumps(found[-1], indent=1), flush=True)
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {name: version(name) for name in LIBRARIES},
        "results": found,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
