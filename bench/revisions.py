"""Step times of this working tree against those of an earlier revision: whether a change cost anything.

python bench/revisions.py --before 1c0ec59 --work FOLDER --output bench/results/revisions.json [--rounds 15]

Both export, build and run one random LlamaGen, each with its own code. In each round both decode the same image in a
new process, in turns which change; the figure is the median over rounds of the ratio of their median step times.
Needs git, and the earlier revision in its history.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("runner", "export", "engines", "calibration")
THIS = "this"


def install(revision: str, folder: Path) -> Path:
    """A folder to import a revision's `arforge` from; the working tree's where the revision is `THIS`."""
    if revision == THIS:
        return ROOT
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "source.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "--output", archive, revision, "arforge", *FOLDERS], check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    for name in FOLDERS:
        if not (folder / "arforge" / name).exists():
            (folder / "arforge" / name).symlink_to(folder / name)
    return folder


class Clock:
    """Notes the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, done: int, steps: int) -> None:
        self.ends.append(time.perf_counter())


def serve(bundle: Path, threads: int, schedule: str, guidance: float) -> None:
    """Print the median step time of an image, in seconds; the image before it warms up."""
    from arforge.runner import Runner

    with Runner.open(bundle, threads=threads) as runner:
        for _ in range(2):
            clock = Clock()
            runner.generate([207], schedule=schedule, guidance=guidance, progress=clock)
    print(statistics.median(after - before for before, after in pairwise(clock.ends)))


class Side:
    """One revision and its bundle. Each measurement is a process of its own: where its memory lies counts for 5 %."""

    def __init__(self, name: str, source: Path, checkpoint: Path, work: Path, arguments: argparse.Namespace) -> None:
        self.name, self.bundle = name, work / f"{name}.bundle"
        self._environment = {**os.environ, "PYTHONPATH": str(source)}
        self._threads = str(arguments.threads)
        if not self.bundle.exists():
            grid = f"{arguments.grid}x{arguments.grid}"
            size = ["--variant", arguments.variant, "--grid", grid]
            self._python(
                "-m", "arforge", "export", "llamagen", *size, "--checkpoint", checkpoint, "--output", self.bundle
            )
            self._python("-m", "arforge", "build", self.bundle, "--target", "onnxruntime", "--precision", "fp32")

    def measure(self, schedule: str, guidance: float) -> float:
        """Median step time of one image, in milliseconds."""
        return 1000 * float(self._python(__file__, "--serve", self.bundle, self._threads, schedule, guidance))

    def _python(self, *words: Any) -> str:
        command = [sys.executable, "-P", *map(str, words)]
        return subprocess.run(command, env=self._environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def random_checkpoint(variant: str, grid: int, path: Path) -> None:
    """A LlamaGen of that size with random weights, in the authors' layout."""
    import torch

    from arforge.export.families import llamagen

    size = llamagen.VARIANTS[variant]
    config = llamagen.LlamaGenConfig(size.dim, size.n_layer, size.n_head, (grid, grid))
    torch.manual_seed(0)
    shapes = llamagen.checkpoint_shapes(config)
    tensors = {name: torch.ones(s) if "norm" in name else torch.randn(s) / s[-1] ** 0.5 for name, s in shapes.items()}
    torch.save({"model": tensors}, path)


def compare(before: Side, after: Side, schedule: str, guidance: float, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {before.name: [], after.name: []}
    for number in range(rounds):
        for side in [before, after][:: 1 if number % 2 else -1]:
            taken[side.name].append(side.measure(schedule, guidance))
    ratios = [new / old for old, new in zip(*taken.values(), strict=True)]
    quarters: Sequence[float] = statistics.quantiles(ratios, n=4)
    return {
        "schedule": schedule,
        "guidance": guidance,
        "ms_per_step": {name: round(statistics.median(values), 3) for name, values in taken.items()},
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(quarters[0], 4), round(quarters[2], 4)],
    }


def main() -> None:
    from arforge.runner.device import device_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a revision that git knows")
    parser.add_argument("--work", type=Path, help="folder for sources and bundles, which are kept")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--variant", default="B")
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--schedule", action="append", help="default: ntp and zipar:4")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        bundle, threads, schedule, guidance = arguments.serve
        serve(Path(bundle), int(threads), schedule, float(guidance))
        return
    if not (arguments.before and arguments.work and arguments.output):
        parser.error("--before, --work and --output are needed")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    random_checkpoint(arguments.variant, arguments.grid, checkpoint)
    sides = [
        Side(name, install(revision, work / "source" / name), checkpoint, work, arguments)
        for name, revision in (("before", arguments.before), ("after", THIS))
    ]
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {"onnxruntime": version("onnxruntime"), "before": arguments.before},
        "model": f"llamagen {arguments.variant}, {arguments.grid}x{arguments.grid}, fp32, batch 1",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "steps": [],
    }
    for schedule in arguments.schedule or ("ntp", "zipar:4"):
        for guidance in (1.0, 2.0):
            row = compare(*sides, schedule, guidance, arguments.rounds)
            figures["steps"].append(row)
            print(json.dumps(row), flush=True)
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
