"""Time saved next to steps saved, and throughput of batches, on the CPU.

python bench/schedules.py --work FOLDER --output bench/results/schedules.json [--rounds 2] [--batch 1 --batch 8]

Every step of every generation is run, in rounds: first next-token decoding of as many cells, then each schedule, whose
time saved is against the former in the same round. PAR's decodes token by token by the engine's own one-token step;
ARPG's, which has no such step, by that of the LlamaGen of its size. Image decoding is not in it.
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

import numpy as np
from build_engines import export

from arforge.engines import onnxruntime
from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.conditions import class_conditions
from arforge.runner.device import device_name
from arforge.runner.plan import Plan, make_plan
from arforge.runner.runner import open_engine
from arforge.runner.step_graph import guided_rows

# family, variant, grid, schedules
MODELS: list[tuple[str, str, tuple[int, int], list[str]]] = [
    ("llamagen", "L", (24, 24), ["ntp", "zipar:16", "zipar:12", "zipar:8"]),
    ("par", "XL", (24, 24), ["par:4"]),
    ("arpg", "L", (16, 16), ["arpg:64"]),
]


def ready(bundle: Path, precision: str) -> Bundle:
    opened = open_bundle(bundle)
    if not any(engine.precision == precision for engine in opened.engines):
        onnxruntime.build(bundle, precision)
    return open_bundle(bundle)


def seconds_of(engine: Engine, bundle: Bundle, plan: Plan, images: int) -> float:
    """Seconds of all steps of one generation with guidance."""
    prompts = class_conditions(bundle.model, range(images)).rows(guided=True)
    known = plan.known(bundle.model, prompts)
    engine.prepare(images, len(prompts), plan.slots, plan.schedule.zero_slots)
    start = time.perf_counter()
    for step in plan.steps:
        buffers = engine.buffers(step.width, step.queries)
        step.fill(buffers, known)
        buffers.uniforms[:], buffers.guidance[:] = 0.5, 2
        engine.run(step.width, step.queries)
        step.store(buffers, known)
    return time.perf_counter() - start


def one_token_seconds(engine: Engine, cells: int, images: int) -> float:
    """Seconds of a generation of `cells` by one-token steps."""
    engine.prepare(images, guided_rows(images, guided=True), cells, zero_slots=0)
    buffers = engine.buffers(1)
    start = time.perf_counter()
    for slot in range(cells):
        buffers.write_index[:], buffers.guidance[:] = slot, 2
        buffers.mask[:] = np.arange(cells) <= slot
        engine.run(1)
    return time.perf_counter() - start


def measure(
    bundle: Bundle, plain: Bundle, schedules: list[str], batches: list[int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """`plain`: the bundle whose engine decodes token by token."""
    engine = open_engine(bundle, "onnxruntime", arguments.precision, arguments.threads)
    single = engine if plain is bundle else open_engine(plain, "onnxruntime", arguments.precision, arguments.threads)
    found = []
    for images in batches:
        plans = {name: make_plan(bundle.schedule(name), engine.widths) for name in schedules}
        rounds = []
        for _ in range(arguments.rounds):
            alone = one_token_seconds(single, bundle.model.cells, images)
            taken = {name: seconds_of(engine, bundle, plan, images) for name, plan in plans.items()}
            rounds.append({"one token": alone, **taken})
        for name, plan in plans.items():
            seconds = statistics.median(one[name] for one in rounds)
            row = {
                "schedule": name,
                "batch": images,
                "steps": len(plan.steps),
                "steps_saved": 1 - len(plan.steps) / bundle.model.cells,
                "seconds": seconds,
                "time_saved": statistics.median(1 - one[name] / one["one token"] for one in rounds),
                "images_per_second": images / seconds,
                "rounds": [{"seconds": one[name], "one_token_seconds": one["one token"]} for one in rounds],
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
    parser.add_argument("--rounds", type=int, default=2)
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
