"""Time by operator of a decoding step of each width on ONNX Runtime, by the library's own profiler.

python bench/operators.py --bundle l.bundle --output bench/results/operators.json [--precision int8] [--width 1 …]
    [--images 8]

An image with guidance is two rows, with half of an image before the measured tokens. The profiler costs some
microseconds an operator; `step` is the same step without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import ROWS, fill

from arforge.runner.backends.kernels import find_kernels
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import open_bundle
from arforge.runner.device import device_name
from arforge.runner.profiling.operator_times import TracedEngine


def one_step(engine: OnnxRuntimeEngine, slot: int, width: int) -> float:
    """Seconds of a step of `width` tokens a row with `slot` before them."""
    fill(engine.buffers(width), slot, width)
    start = time.perf_counter()
    engine.run(width)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--width", action="append", type=int, help="tokens a row and step; default 1, 4, 24")
    parser.add_argument("--images", type=int, default=1, help="decoded together")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    slot = bundle.model.cells // 2
    identity = bundle.engine("onnxruntime", arguments.precision)
    own = find_kernels() is not None and "own_graph" in identity
    path = bundle.path(identity["own_graph" if own else "graph"])
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {name: version(name) for name in ("arforge", "onnxruntime")},
        "model": arguments.bundle.stem,
        "precision": arguments.precision,
        "threads": arguments.threads,
        "slot": slot,
        "images": arguments.images,
        "widths": {},
    }
    for width in arguments.width or [1, 4, 24]:
        given = (bundle, arguments.precision, arguments.threads)
        plain, traced = OnnxRuntimeEngine(*given, path=path), TracedEngine(*given, path=path)
        for engine in (plain, traced):
            engine.prepare(arguments.images, arguments.images * ROWS, slot + width, zero_slots=slot + width)
        seconds = statistics.median(one_step(plain, slot, width) for _ in range(arguments.steps))
        plain.close()
        for _ in range(arguments.steps):
            one_step(traced, slot, width)
        found = {
            one.operator: {
                "calls": one.calls / arguments.steps,
                "milliseconds": 1000 * one.seconds / arguments.steps,
            }
            for one in traced.times()
        }
        traced.close()
        figures["widths"][width] = {"step_milliseconds": 1000 * seconds, "operators": found}
        print(f"width {width}: {1000 * seconds:.1f} ms a step without the profiler", flush=True)
        for operator, row in list(found.items())[:8]:
            print(f"  {operator:36} {row['calls']:5.0f} calls {row['milliseconds']:8.2f} ms", flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
