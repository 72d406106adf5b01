"""Whether running ahead on drafts gives next-token's own tokens, in how many calls, and in what time.

python bench/jacobi.py fashion.bundle noisy.bundle --images 10000 --output bench/results/jacobi.json [--precision int8]

Tokens: groups of images with seeds, guidance, temperature, filters, window and batch drawn at random, each decoded as
`ntp` and as `jacobi:L`. Calls: each window with the bundle's settings and `--guidance`. Time: one image at a time,
schedules in turn, medians and the median of each round's ratio to `ntp`; run it on an idle machine. Models that take
prompts get random ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner import Runner
from arforge.runner.conditions import sample_subjects
from arforge.runner.device import device_name

WINDOWS = (2, 3, 4, 5, 8, 16, 32)
GROUP = 100  # images that share a request


class Case:
    """A bundle's engine, and requests of it."""

    def __init__(self, bundle: Path, precision: str | None, threads: int) -> None:
        self.runner = Runner.open(bundle, precision=precision, threads=threads)
        self.model = self.runner.bundle.model
        self.windows = [window for window in WINDOWS if window <= self.model.cells]

    def generate(self, count: int, first_seed: int, schedule: str, **settings: Any) -> Any:
        subjects = sample_subjects(self.model, count).take(range(count))
        seeds = range(first_seed, first_seed + count)
        return self.runner.generate(**subjects, seeds=list(seeds), schedule=schedule, images=False, **settings)

    def tokens(self, images: int, seed: int) -> dict[str, Any]:
        """Images of random settings that are `ntp`'s to the token."""
        random = np.random.default_rng(seed)
        same = {window: [0, 0] for window in self.windows}
        for first in range(0, images, GROUP):
            window = int(random.choice(self.windows))
            settings = {
                "guidance": float(random.choice([1.0, 1.5, 2.0, 4.0, 7.5])),
                "temperature": float(random.choice([0.0, 0.7, 1.0, 1.3], p=[0.1, 0.3, 0.3, 0.3])),
                "top_k": int(random.choice([0, self.model.vocabulary // 8])),
                "top_p": float(random.choice([1.0, 0.95])),
            }
            batches = random.choice([1, 7, 25, 50, 100], size=2, p=[0.04, 0.24, 0.24, 0.24, 0.24])
            count = min(GROUP, images - first)
            start = int(random.integers(1 << 40))
            wanted = self.generate(count, start, "ntp", batch=int(batches[0]), **settings)
            found = self.generate(count, start, f"jacobi:{window}", batch=int(batches[1]), **settings)
            same[window][0] += int((wanted.tokens == found.tokens).all(axis=1).sum())
            same[window][1] += count
        total, equal = (sum(counts[index] for counts in same.values()) for index in (1, 0))
        return {"images": total, "equal": equal, "by_window": {str(window): counts for window, counts in same.items()}}

    def calls(self, images: int, settings: dict[str, Any]) -> dict[str, float]:
        """Mean calls an image by window."""
        return {
            str(window): float(self.generate(images, 0, f"jacobi:{window}", batch=50, **settings).passes.mean())
            for window in self.windows
        }

    def times(self, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
        """Seconds an image, one at a time."""
        schedules = ["ntp", *(f"jacobi:{window}" for window in self.windows if window <= 8)]
        taken: dict[str, list[float]] = {schedule: [] for schedule in schedules}
        for index in range(-1, rounds):
            for schedule in schedules:
                result = self.generate(1, max(index, 0), schedule, **settings)
                if index >= 0:  # the first makes plans and buffers
                    taken[schedule].append(result.seconds)
        return {
            schedule: {
                "seconds": statistics.median(seconds),
                "times_quicker": statistics.median(n / s for n, s in zip(taken["ntp"], seconds, strict=True)),
            }
            for schedule, seconds in taken.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--precision")
    parser.add_argument("--images", type=int, default=1000, help="whose tokens are compared; 0: none")
    parser.add_argument("--counted", type=int, default=200, help="images whose calls are counted; 0: none")
    parser.add_argument("--rounds", type=int, default=0, help="of timing")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    settings = {} if arguments.guidance is None else {"guidance": arguments.guidance}
    rows = []
    for bundle in arguments.bundles:
        case = Case(bundle, arguments.precision, arguments.threads)
        row: dict[str, Any] = {
            "bundle": bundle.stem,
            "sampler": case.runner.bundle.sampler.kind,
            "vocabulary": case.model.vocabulary,
            "cells": case.model.cells,
        }
        if arguments.images:
            row["tokens"] = case.tokens(arguments.images, arguments.seed)
        if arguments.counted:
            row["calls"] = {"images": arguments.counted, **settings, **case.calls(arguments.counted, settings)}
        if arguments.rounds:
            row["times"] = {"rounds": arguments.rounds, **settings, **case.times(arguments.rounds, settings)}
        case.runner.close()
        rows.append(row)
        print(json.dumps(row), flush=True)
        save(arguments, rows)  # so that a run that is cut off leaves what it has


def save(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    figures = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "threads": arguments.threads,
        "precision": arguments.precision or "the bundle's",
        "versions": {name: version(name) for name in ("arforge", "onnxruntime", "numpy")},
        "bundles": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
