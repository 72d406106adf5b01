"""Correctness and speed of full-size models on a GPU, for every runtime that runs there, in one go.

python bench/gpu.py --work FOLDER --output bench/results/gpu.json [--case llamagen:L:24x24=ntp,zipar:16,zipar:8 …]
    [--runtime tensorrt --runtime tensorrt-rtx --runtime onnxruntime-cuda --runtime torch-compile …] [--batch 1 …]

Weights are random. Each model is exported once; each runtime runs in a process of its own, through the same runner
and requests, and a runtime that fails is recorded with its error and does not stop the others. Tokens are compared
with ONNX Runtime's on the CPU in float32: step by step on the CPU's tokens so far, and over one whole image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from build_engines import export

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.conditions import sample_conditions
from arforge.runner.errors import ArforgeError
from arforge.runner.profiling.profile import Settings, TimedEngine, Traffic, against_first, profile_schedule, summary
from arforge.runner.runner import Runner, open_codec, open_engine
from arforge.runner.side_by_side import GUIDANCE, side_by_side

CASES = ("llamagen:L:24x24=ntp,zipar:16,zipar:8", "par:XL:24x24=par:4", "arpg:L:16x16=arpg:64")
RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch-compile")
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "torch", "cuda-bindings")
COMPARED_STEPS = 64
KEPT = ("ms_per_step", "ms_per_image", "images_per_second", "bytes_per_second", "bandwidth_share", "runner_ms_per_step")


def engine_of(runtime: str, bundle: Bundle, precision: str, schedules: list[str], batches: list[int]) -> Engine:
    """The engine of one runtime, built first where it needs that. Raises an ArforgeError if it cannot be had."""
    from gpu_engines import ProviderEngine, TorchEngine

    if runtime in ("tensorrt", "tensorrt-rtx"):
        from arforge.engines.tensorrt import BuildJob, build

        build(BuildJob(bundle.root, runtime, precision, schedules=schedules, images=batches), print)
        return open_engine(open_bundle(bundle.root), runtime, precision)
    engines: dict[str, Callable[[], Engine]] = {
        "onnxruntime-cuda": lambda: ProviderEngine(bundle, precision, "CUDA"),
        "onnxruntime-cuda-plain": lambda: ProviderEngine(bundle, precision, "CUDA", graphs=False),
        "onnxruntime-cpu": lambda: ProviderEngine(bundle, precision, "CPU"),
        "torch-compile": lambda: TorchEngine(bundle, precision, "cuda", compiled=True),
        "torch-eager": lambda: TorchEngine(bundle, precision, "cuda", compiled=False),
        "torch-cpu": lambda: TorchEngine(bundle, precision, "cpu", compiled=False),
    }
    if runtime not in engines:
        raise SystemExit(f"no runtime {runtime!r}: use {', '.join([*RUNTIMES, *engines])}")
    return engines[runtime]()


def same_step_tokens(bundle: Bundle, reference: Engine, engine: Engine, schedule: str) -> float:
    """Share of tokens, most likely ones, that both find the same, each step given the reference's so far."""
    same = cells = 0
    for done in side_by_side(bundle, schedule, [reference, engine], sample_conditions(bundle, 1), COMPARED_STEPS):
        wanted, found = (buffers.next_tokens[:, step.target_rows] for step, buffers in done)
        same, cells = same + int((wanted == found).sum()), cells + wanted.size
    return same / cells


def measure(
    root: Path, runtime: str, precision: str, schedules: list[str], batches: list[int], most: int | None
) -> Any:
    """In a child process: all figures of one runtime on one model."""
    bundle = open_bundle(root)
    start = time.perf_counter()
    measured = engine_of(runtime, bundle, precision, schedules, batches)
    engine, codec = TimedEngine(measured), open_codec(bundle, measured)
    ready = time.perf_counter() - start
    traffic = Traffic.of(open_bundle(root), precision, engine.cache_type)
    reference = open_engine(bundle, "onnxruntime", "fp32")
    figures: dict[str, Any] = {"device": engine.device, "seconds_to_build_and_load": ready, "schedules": []}
    with Runner(bundle, engine, codec) as runner, Runner(bundle, reference) as expected:
        bandwidth = engine.bandwidth()
        figures["bytes_per_second_of_a_copy"] = bandwidth
        for batch in batches:
            settings = Settings(images=batch, guidance=GUIDANCE, max_steps=most)
            rows = [summary(profile_schedule(runner, engine, name, settings), traffic, bandwidth) for name in schedules]
            saved = against_first(rows) if most is None else [{} for _ in rows]
            for row, more in zip(rows, saved, strict=True):
                least = (row["weight_bytes_per_step"] + row["cache_bytes_per_step"]) / bandwidth
                kept = {"schedule": row["schedule"], "steps": row["steps"], "batch": batch}
                kept |= {name: row[name] for name in KEPT} | {"ms_per_step_of_the_memory_limit": 1000 * least} | more
                figures["schedules"].append(kept)
                print(json.dumps(kept), file=sys.stderr, flush=True)
        figures["agreement"] = []
        for name in schedules:
            found: dict[str, Any] = {"schedule": name, "steps": same_step_tokens(bundle, reference, engine, name)}
            if most is None:
                request: dict[str, Any] = {"schedule": name, "guidance": GUIDANCE, "seeds": [0]}
                tokens = [one.generate([0], **request).tokens for one in (expected, runner)]
                found["image"] = float((tokens[0] == tokens[1]).mean())
            figures["agreement"].append(found)
    return figures


def child(arguments: argparse.Namespace, root: Path, runtime: str, schedules: str) -> dict[str, Any]:
    """`measure` in a process of its own, since one process takes one TensorRT, and a crash should cost one row."""
    command = [sys.executable, __file__, "--one", str(root), "--runtime", runtime, "--case", f"x={schedules}"]
    command += ["--precision", arguments.precision, *(f"--batch={batch}" for batch in arguments.batch)]
    command += [f"--max-steps={arguments.max_steps}"] if arguments.max_steps else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        found = {"error": f"the process ended with status {done.returncode}: {' '.join(lines[-3:])}"}
    return {"model": root.stem, "runtime": runtime, "precision": arguments.precision, **found}


def versions() -> dict[str, str]:
    found = {}
    for name in ("arforge", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where bundles are written and kept, some 3 GB a model")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--case", action="append", help=f"FAMILY:VARIANT:GRID=SCHEDULES; default {' '.join(CASES)}")
    parser.add_argument("--runtime", action="append", help=f"default {', '.join(RUNTIMES)}")
    parser.add_argument("--precision", choices=["fp16", "fp32"], default="fp16", help="of the runtimes measured")
    parser.add_argument("--batch", action="append", type=int, help="images decoded together; default 1 and 64")
    parser.add_argument("--max-steps", type=int, help="of a generation; default all")
    parser.add_argument("--one", type=Path, metavar="BUNDLE", help="measure one runtime here and print its figures")
    arguments = parser.parse_args(words)
    arguments.batch = arguments.batch or [1, 64]
    if arguments.one:
        schedules = arguments.case[0].partition("=")[2].split(",")
        try:
            found = measure(
                arguments.one,
                arguments.runtime[0],
                arguments.precision,
                schedules,
                arguments.batch,
                arguments.max_steps,
            )
        except ArforgeError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    if not arguments.work or not arguments.output:
        parser.error("--work and --output are needed")
    arguments.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "bench/gpu.py", *(sys.argv[1:] if words is None else words)],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
        "guidance": GUIDANCE,
        "max_steps": arguments.max_steps,
        "runs": [],
    }
    for case in arguments.case or CASES:
        model, _, schedules = case.partition("=")
        family, variant, grid = model.split(":")
        rows, columns = (int(side) for side in grid.split("x"))
        root = export(family, variant, (rows, columns), arguments.work)
        prepare(root, arguments.precision)
        for runtime in arguments.runtime or RUNTIMES:
            figures["runs"].append(child(arguments, root, runtime, schedules))
            print(json.dumps(figures["runs"][-1], indent=1), flush=True)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def prepare(root: Path, precision: str) -> None:
    """Give the bundle the CPU's engine, and the graphs of the precision that the other runtimes share."""
    from arforge.engines import onnxruntime
    from arforge.engines.low_precision import add_graphs, entries, has_graphs
    from arforge.runner.bundle.writer import changing, write_revision

    with changing(root) as bundle:
        if not has_graphs(bundle, precision):
            new = add_graphs(bundle, precision)
            write_revision(replace(bundle, graphs=(*bundle.graphs, *entries(precision))), new)
    onnxruntime.build(root)


if __name__ == "__main__":
    main()
