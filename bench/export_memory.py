"""Exports models of full size from sparse files: peak memory and time. Needs no weights: all are zero.

python bench/export_memory.py --work FOLDER --output FILE.json [--family emu3 …]
                                [--stored fp32] [--precision int4 …]

The checkpoint's shards have their true sizes and no blocks on disk. Each command runs in a process of its own, whose
peak is what the system counts as its largest resident set (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoints import BYTES, MODELS, write_checkpoint

LIBRARIES = ("arforge", "torch", "onnx-ir", "onnxscript", "onnxruntime", "safetensors")


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
    folder = work / f"{family}-{stored}"
    parameters = write_checkpoint(family, folder, stored, "zeros")
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
