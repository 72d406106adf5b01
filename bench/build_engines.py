"""Builds TensorRT-RTX engines of full-size models with random weights: time, peak memory, size. Needs no GPU.

python bench/build_engines.py --work FOLDER --output FILE.json [--model llamagen:L:24x24 …] [--precision fp16]

Each model is exported from a checkpoint of random weights, which is removed again; each build runs in a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arforge.runner import open_bundle

MODELS = ("llamagen:L:24x24", "arpg:L:16x16")
LIBRARIES = ("arforge", "polygraphy", "tensorrt_rtx_cu13_libs", "onnx-ir")


def export(family_name: str, variant: str, grid: tuple[int, int], folder: Path) -> Path:
    import torch

    from arforge.export.config import variant_config
    from arforge.export.exporter import ExportJob, export_bundle
    from arforge.export.families import FAMILIES

    bundle = folder / f"{family_name}-{variant}-{grid[0]}x{grid[1]}.bundle"
    if bundle.exists():
        return bundle
    family = FAMILIES[family_name]
    config = variant_config(family, variant, grid)
    random = torch.Generator().manual_seed(0)
    weights = {name: 0.02 * torch.randn(s, generator=random) for name, s in family.checkpoint_shapes(config).items()}
    checkpoint = folder / f"{bundle.stem}.pt"
    torch.save(weights, checkpoint)
    export_bundle(ExportJob(family, config, checkpoint, None, bundle))
    checkpoint.unlink()
    return bundle


def build(bundle: Path, precision: str) -> dict[str, Any]:
    """In a child process: what `arforge build` took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["build", str(bundle), "--target", "tensorrt-rtx", "--precision", precision]
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "arforge", *command], stdout=subprocess.PIPE, text=True)
    said = child.communicate()[0]
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"arforge {' '.join(command)} failed with status {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    opened = open_bundle(bundle)
    identity = opened.engine("tensorrt-rtx", precision)
    return {
        "model": bundle.stem,
        "precision": precision,
        "command": ["arforge", *command],
        "said": said.strip(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_bytes": after.ru_maxrss * 1024,
        "engine_bytes": opened.files[identity["engine"]].bytes,
        "weights_bytes": opened.files[identity["weights"]].bytes,
        "profiles": len(identity["profiles"]),
        "widths": identity["widths"],
        "slots": identity["slots"],
        "attention": identity["attention"],
        "library": identity["library"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where bundles are written, some 3 GB a model")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--model", action="append", help=f"FAMILY:VARIANT:ROWSxCOLUMNS; default {', '.join(MODELS)}")
    parser.add_argument("--precision", action="append", help="default fp16")
    parser.add_argument("--keep", action="store_true", help="leave the bundles there")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    figures: dict[str, Any] = {
        "machine": machine,
        "versions": {name: version(name) for name in LIBRARIES},
        "builds": [],
    }
    for model in arguments.model or MODELS:
        family, variant, grid = model.split(":")
        rows, columns = (int(side) for side in grid.split("x"))
        bundle = export(family, variant, (rows, columns), arguments.work)
        for precision in arguments.precision or ["fp16"]:
            figures["builds"].append(build(bundle, precision))
            print(json.dumps(figures["builds"][-1], indent=1), flush=True)
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
        if not arguments.keep:
            shutil.rmtree(bundle)


if __name__ == "__main__":
    main()
