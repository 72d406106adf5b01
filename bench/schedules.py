"""Time saved next to steps saved, and throughput of batches, on the CPU, from a sample of each schedule's steps.

python bench/schedules.py --work FOLDER --output bench/results/schedules.json [--every 8] [--batch 1 --batch 8]

Schedules are tables: a step's shape does not depend on what was sampled. So every Nth step is run, twice, and the
second time is taken for N steps. What is not in it: moving the caches when they grow (under 1 %), and image decoding.
What steps are saved against is next-token decoding of as many cells: the engine's own one-token step at every Nth slot,
for ARPG, which has no such step, that of the LlamaGen of its size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from build_engines import export

from arforge.engines import onnxruntime
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.device import device_name
from arforge.runner.engine import Engine
from arforge.runner.plan import Plan, make_plan
from arforge.runner.runner import guided_rows, open_engine

# family, variant, grid, schedules
MODELS: list[tuple[str, str, tuple[int, int], list[str]]] = [
    ("llamagen", "L", (24, 24), ["ntp", "zipar:16", "zipar:12", "zipar:8"]),
    ("par", "XL", (24, 24), ["par:4"]),
    ("arpg", "L", (16, 16), ["arpg:64"]),
]


def ready(bundle: Path, precision: str) -> Bundle:
    opened = open_bundle(bundle)
    if not any(engine["precision"] == precision for engine in opened.manifest["engines"]):
        onnxruntime.build(bundle, precision)
    return open_bundle(bundle)


def sampled_seconds(engine: Engine, bundle: Bundle, plan: Plan, images: int, every: int) -> float:
    """Seconds of all steps of one generation, from every `every`th."""
    rows = guided_rows(images, guided=True)
    known = plan.known(bundle.model, np.arange(images), rows, np.zeros((images, bundle.model.cells), np.int64))
    engine.prepare(images, rows, plan.slots, plan.schedule.zero_slots)
    engine.scalars.guidance[:] = 2
    total = 0.0
    for index in range(every // 2, len(plan.steps), every):
        step = plan.steps[index]
        for _ in range(2):
            start = time.perf_counter()
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known)
            buffers.uniforms[:] = 0.5
            engine.run(step.width, step.queries)
            step.store(buffers, known)
            seconds = time.perf_counter() - start
        total += seconds
    return total * len(plan.steps) / len(range(every // 2, len(plan.steps), every))


def one_token_seconds(engine: Engine, slots: int, images: int, every: int) -> float:
    """Seconds of a generation of `slots` cells by one-token steps, from every `every`th."""
    rows = guided_rows(images, guided=True)
    engine.prepare(images, rows, slots, zero_slots=0)
    buffers, total, count = engine.buffers(1), 0.0, 0
    for slot in range(every // 2, slots, every):
        for _ in range(2):
            start = time.perf_counter()
            buffers.write_index[:] = slot
            buffers.mask[:] = np.arange(slots) <= slot
            engine.run(1)
            seconds = time.perf_counter() - start
        total, count = total + seconds, count + 1
    return total * slots / count


def measure(
    bundle: Bundle, plain: Bundle, schedules: list[str], batches: list[int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """`plain`: the bundle whose engine decodes token by token."""
    engine = open_engine(bundle, "onnxruntime", arguments.precision, arguments.threads)
    single = engine if plain is bundle else open_engine(plain, "onnxruntime", arguments.precision, arguments.threads)
    found = []
    for images in batches:
        alone = one_token_seconds(single, bundle.model.cells, images, arguments.every)
        for name in schedules:
            plan = make_plan(bundle.schedule(name), engine.widths)
            seconds = sampled_seconds(engine, bundle, plan, images, arguments.every)
            row = {
                "schedule": name,
                "batch": images,
                "steps": len(plan.steps),
                "steps_saved": 1 - len(plan.steps) / bundle.model.cells,
                "seconds": seconds,
                "one_token_seconds": alone,
                "time_saved": 1 - seconds / alone,
                "images_per_second": images / seconds,
            }
            found.append(row)
            print(json.dumps({"model": bundle.root.stem, **row}), flush=True)
    for one in {id(engine): engine, id(single): single}.values():
        one.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where bundles of random weights are, or are made")
    parser.add_argument("--output", type=Path, help="JSON file; without it, bundles and engines are made only")
    parser.add_argument("--family", action="append", choices=[model[0] for model in MODELS], help="default: all")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--batch", action="append", type=int, help="default 1, 8")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {name: version(name) for name in ("arforge", "onnxruntime", "numpy")},
        "precision": arguments.precision,
        "threads": arguments.threads,
        "every": arguments.every,
        "models": {},
    }
    for family, variant, grid, schedules in MODELS:
        if arguments.family and family not in arguments.family:
            continue
        bundle = ready(export(family, variant, grid, arguments.work), arguments.precision)
        plain = bundle
        if bundle.model.queries:
            plain = ready(export("llamagen", variant, (24, 24), arguments.work), arguments.precision)
        if arguments.output:
            batches = arguments.batch or [1, 8]
            figures["models"][bundle.root.stem] = measure(bundle, plain, schedules, batches, arguments)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
