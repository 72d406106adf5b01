"""What the step loop costs beside the engine, in C++ and in Python: LlamaGen-B's dimensions, random weights.

python bench/cpp_overhead.py --work FOLDER --run PATH/TO/arforge-run --output FILE.json [--schedule ntp …]

Overhead is the wall clock of a step less the time inside the engine's call, the median of the steps of --repeats
generations, each without its first step. Both runners take the same bundle, class, seed and threads. The exported
bundle is kept in FOLDER for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from build_engines import export

from arforge.engines import onnxruntime
from arforge.runner import Runner, open_bundle
from arforge.runner.device import device_name
from arforge.runner.profiling.profile import TimedEngine
from arforge.runner.runner import open_engine

Times = tuple[np.ndarray, np.ndarray]  # of each step, and of the engine in it
LIBRARIES = ("arforge", "onnxruntime", "numpy")


def python_times(bundle: Path, schedule: str, images: int, threads: int, repeats: int) -> tuple[Times, np.ndarray]:
    """Seconds of each step and of the engine in it, after one generation to warm up; and the tokens."""
    opened = open_bundle(bundle)
    engine = TimedEngine(open_engine(opened, "onnxruntime", "fp32", threads))
    steps, inside = [], []
    with Runner(opened, engine) as runner:
        for repeat in range(repeats + 1):
            ends: list[float] = []
            result = runner.generate(
                [1] * images,
                schedule=schedule,
                batch=images,
                progress=lambda done, count, ends=ends: ends.append(time.perf_counter()),
            )
            if repeat:
                steps.append(np.diff(ends))
                inside.append(np.array(engine.seconds[1:]))
    return (np.concatenate(steps), np.concatenate(inside)), result.tokens


def cpp_times(
    program: Path, bundle: Path, schedule: str, images: int, threads: int, repeats: int, folder: Path
) -> tuple[Times, np.ndarray]:
    """The same of arforge-run, a process a repeat."""
    steps, inside = [], []
    words = [program, bundle, "--class", "1", "--samples", images, "--batch", images, "--schedule", schedule, "--quiet"]
    for _ in range(repeats):
        files = ("--tokens", folder / "tokens.npy", "--timings", folder / "timings.json")
        subprocess.run([str(word) for word in (*words, "--threads", threads, *files)], check=True, capture_output=True)
        found = json.loads((folder / "timings.json").read_text())
        steps.append(np.array(found["step_seconds"][1:]))
        inside.append(np.array(found["engine_seconds"][1:]))
    return (np.concatenate(steps), np.concatenate(inside)), np.load(folder / "tokens.npy")


def figures(times: Times) -> dict[str, float]:
    step, engine = times
    return {
        "steps": len(step),
        "step_ms": round(1e3 * float(np.median(step)), 3),
        "engine_ms": round(1e3 * float(np.median(engine)), 3),
        "overhead_us": round(1e6 * float(np.median(step - engine)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the bundle is written, some 0.5 GB")
    parser.add_argument("--run", type=Path, required=True, help="arforge-run")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--schedule", action="append", help="default ntp and zipar:4")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="export the bundle, and measure nothing")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = export("llamagen", "B", (16, 16), arguments.work)
    if not open_bundle(bundle).engines:
        onnxruntime.build(bundle)
    if arguments.prepare:
        return
    common = (arguments.images, arguments.threads, arguments.repeats)
    measured: list[dict[str, Any]] = []
    for schedule in arguments.schedule or ["ntp", "zipar:4"]:
        ours, tokens = cpp_times(arguments.run, bundle, schedule, *common, arguments.work)
        theirs, expected = python_times(bundle, schedule, *common)
        if not np.array_equal(tokens, expected):
            raise SystemExit(f"{schedule}: the two runners give different tokens")
        found = {"cpp": figures(ours), "python": figures(theirs)}
        share = 100 * found["cpp"]["overhead_us"] / (1000 * found["cpp"]["step_ms"])
        measured.append({"schedule": schedule, **found, "cpp_overhead_percent": round(share, 3)})
        print(json.dumps(measured[-1]), flush=True)
    report = {
        "model": bundle.stem,
        "precision": "fp32",
        "images": arguments.images,
        "guidance": "the bundle's, so two rows an image",
        "threads": arguments.threads,
        "machine": device_name(),
        "versions": {name: version(name) for name in LIBRARIES},
        "measured": measured,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
