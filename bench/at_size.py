"""Models of published sizes from export to steps on this machine: seconds, and memory of each. Weights are random.

python bench/at_size.py --work FOLDER --output FILE.json --family lumina [--precision int4 …] [--width 1 …] [--keep]

Each command runs in a process of its own, whose peak is what the system counts as its largest resident set. The engine
is opened in another: anonymous memory is what library and caches hold, mapped memory what of the files is resident too,
which the system may drop. Steps are of one image with guidance, two rows; with one thread their CPU time tells what
they take beside other work. Needs 2 bytes a parameter on disk and the bundle's; `--keep` leaves the bundles there, and
takes those that are.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoints import MODELS, write_checkpoint
from export_memory import measured
from load_memory import resident
from peers import ROWS, fill

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.device import device_name
from arforge.runner.runner import open_engine

EARLY = 100  # tokens before the first steps that are timed
LIBRARIES = ("arforge", "onnxruntime", "torch", "numpy")


def open_and_step(root: Path, precision: str, widths: list[int], steps: int, threads: int) -> dict[str, Any]:
    """In a process of its own: load the engine, then steps early, halfway and late in an image."""
    bundle, before = open_bundle(root), resident()
    start = time.perf_counter()
    engine = open_engine(bundle, "onnxruntime", precision, threads)
    seconds, loaded = time.perf_counter() - start, resident()
    weights = bundle.files[bundle.stored_graph("step", "fp32").weights].bytes
    slots = bundle.model.position_rows
    engine.prepare(images=1, rows=ROWS, slots=slots, zero_slots=0)
    late = slots - max(widths) * (steps + 1)
    rows = [timed(engine, slot, width, steps) for width in widths for slot in (EARLY, slots // 2, late)]
    rows.append(timed(engine, EARLY, widths[0], steps))  # once more, now that all slots are bound
    return {
        "weights_bytes": weights,
        "load_seconds": round(seconds, 2),
        "anonymous_of_weights": round((loaded["RssAnon"] - before["RssAnon"]) / weights, 3),
        "mapped_of_weights": round((loaded["RssFile"] - before["RssFile"]) / weights, 3),
        "steps": rows,
        "cache_bytes": cache_bytes(bundle, slots),
        "anonymous_bytes_at_last": resident()["RssAnon"],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def timed(engine: Engine, slot: int, width: int, steps: int) -> dict[str, Any]:
    """The first step, in which caches grow, is not counted."""
    taken, cpu = [], []
    for index in range(steps + 1):
        fill(engine.buffers(width), slot + index * width, width)
        start, before = time.perf_counter(), time.process_time()
        engine.run(width)
        taken.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - before))
    return {
        "width": width,
        "slot": slot,
        "bound": engine.cache("key_cache_0").shape[2],
        "milliseconds": round(statistics.median(taken[1:]), 1),
        "cpu_milliseconds": round(statistics.median(cpu[1:]), 1),
    }


def cache_bytes(bundle: Bundle, slots: int) -> int:
    model = bundle.model
    return 2 * model.caches * ROWS * model.kv_heads * model.head_size * slots * 4


def measure(family: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    bundle, checkpoint = options.work / f"{family}-{precision}.bundle", options.work / family
    row: dict[str, Any] = {"family": family, "precision": precision}
    if not bundle.exists():
        if not checkpoint.exists():
            start = time.perf_counter()
            row["parameters"] = write_checkpoint(family, checkpoint)
            row["seconds_of_random"] = round(time.perf_counter() - start, 1)
        row["export"] = measured(
            "export", family, "--checkpoint", checkpoint, "--grid", MODELS[family][0], "--precision", precision,
            "--output", bundle,
        )  # fmt: skip
    row["build"] = measured("build", bundle, "--precision", precision)
    given = [f"--opened={bundle}", f"--precision={precision}", *(f"--width={width}" for width in options.width)]
    given += [f"--steps={options.steps}", f"--threads={options.threads}", f"--work={options.work}"]
    child = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True, check=True)
    row["engine"] = json.loads(child.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--family", choices=MODELS, default="lumina")
    parser.add_argument("--precision", choices=("int8", "int4"), action="append")
    parser.add_argument("--width", action="append", type=int, help="tokens a row and step; default 1, 4")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the bundles there")
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args()
    options.width, options.precision = options.width or [1, 4], options.precision or ["int4"]
    if options.opened:
        given = (options.opened, options.precision[0], options.width, options.steps, options.threads)
        print(json.dumps(open_and_step(*given)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    for precision in options.precision:
        found.append(measure(options.family, precision, options))
        print(json.dumps(found[-1], indent=1), flush=True)
    shutil.rmtree(options.work / options.family, ignore_errors=True)
    for precision in () if options.keep else options.precision:
        shutil.rmtree(options.work / f"{options.family}-{precision}.bundle")
    if options.output:
        record = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["python", *sys.argv],
            "machine": device_name(),
            "threads": options.threads,
            "versions": {name: version(name) for name in LIBRARIES},
            "results": found,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
