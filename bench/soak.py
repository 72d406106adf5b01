"""Loads runners for a long time, with all that a service does to them, and looks for what goes wrong only then.

    python bench/soak.py BUNDLE... [--seconds 3600] [--threads 2] [--precision fp32] [--json FILE]

One runner a bundle is shared by all threads, and each thread opens, uses and closes runners of its own. Requests mix
schedules, batches and settings; some are cancelled, some are wrong, some fail in the caller's code half-way. Every
token is compared with those that were generated before, each image alone. Ends with 1, saying why, for a wrong token
or pixel, an error that was not asked for, memory that grows, or a thread or file handle that is left.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner import Cancelled, RequestError, Runner, ScheduleError
from arforge.runner.conditions import sample_subjects

SUBJECTS, SEEDS, BATCH = 3, 2, 4  # of each schedule: subjects and seeds that are asked for, images of a request at most
GROWTH = 1.05, 48 << 20  # of memory after the first third: a share and bytes, of which the larger counts
PAGE = os.sysconf("SC_PAGE_SIZE")
WEIGHTS = {"answered": 8, "cancelled": 1, "refused": 1, "failed in the caller": 1}  # each once, then so often
Setting = tuple[str, float, bool]  # schedule, guidance, greedy
WRONG_SUBJECTS = {
    "classes": ([10**6], [], [-1], ["no such name"]),
    "features": ([], [np.zeros((1, 1), np.float32)], [np.full((1, 4), np.nan, np.float32)], ["words"]),
}
WRONG_SETTINGS = (
    ({"seeds": [-1]}, RequestError),
    ({"temperature": float("nan")}, RequestError),
    ({"schedule": "zipar:0"}, ScheduleError),
    ({"schedule": "unheard-of"}, ScheduleError),
)


class CallerError(Exception):
    """Of the code that is called after a step."""


class Flag:
    """Cancels after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


class Known:
    """The images of one bundle that requests are made of, generated one by one."""

    def __init__(self, path: Path, precision: str) -> None:
        self.path, self.precision = path, precision
        with self.open() as runner:
            schedules = list(runner.bundle.specifications)
            self.settings: list[Setting] = list(itertools.product(schedules, (1.0, 2.0), (False, True)))
            self.subjects = sample_subjects(runner.bundle.model, SUBJECTS, spread=False)
            self.images: dict[tuple[Setting, int, int], tuple[Any, Any]] = {}
            for setting, index, seed in itertools.product(self.settings, range(SUBJECTS), range(SEEDS)):
                given: dict[str, Any] = {"schedule": setting[0], "guidance": setting[1], "greedy": setting[2]}
                result = runner.generate(**self.subjects.take([index]), seeds=[seed], **given)
                self.images[setting, index, seed] = (
                    result.tokens[0],
                    None if result.images is None else result.images[0],
                )

    def open(self) -> Runner:
        return Runner.open(self.path, precision=self.precision, threads=1)


class Soak:
    def __init__(self, known: list[Known], seed: int) -> None:
        self.known, self.seed = known, seed
        self.shared = [one.open() for one in known]
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = defaultdict(list)

    def work(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        kinds = itertools.chain(WEIGHTS, iter(lambda: rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0], None))
        while not self.stop.is_set():
            index = rng.randrange(len(self.known))
            try:
                if rng.random() < 0.05:
                    with self.known[index].open() as own:
                        for _ in range(rng.randint(1, 5)):
                            self.request(own, self.known[index], rng, next(kinds))
                    self.counts["runners opened and closed"] += 1
                else:
                    self.request(self.shared[index], self.known[index], rng, next(kinds))
            except Exception as error:  # noqa: BLE001 (whatever it is, it is what this looks for)
                self.problems.append(f"{type(error).__name__}: {error}")
                self.stop.set()

    def request(self, runner: Runner, known: Known, rng: random.Random, kind: str) -> None:
        if kind == "refused":
            subjects, error = known.subjects, RequestError
            if rng.random() < 0.5:
                arguments: dict[str, Any] = {subjects.by: rng.choice(WRONG_SUBJECTS[subjects.by])}
            else:
                settings, error = rng.choice(WRONG_SETTINGS)
                arguments = {**subjects.take([0]), **settings}
            self.expect(kind, error, runner, **arguments)
            return
        setting, count = rng.choice(known.settings), rng.randint(1, BATCH)
        asked = [rng.randrange(SUBJECTS) for _ in range(count)]
        seeds = [rng.randrange(SEEDS) for _ in range(count)]
        request: dict[str, Any] = {**known.subjects.take(asked), "seeds": seeds, "schedule": setting[0]}
        request |= {"guidance": setting[1], "greedy": setting[2], "batch": rng.randint(1, BATCH)}
        if kind == "cancelled":
            self.expect(kind, Cancelled, runner, **request, cancel=Flag(rng.randrange(2)))
        elif kind == "failed in the caller":
            last = rng.randint(1, 5)

            def fail(done: int, steps: int) -> None:
                if done == min(last, steps):
                    raise CallerError

            self.expect(kind, CallerError, runner, **request, progress=fail)
        else:
            begun = time.perf_counter()
            result = runner.generate(**request)
            self.latencies[f"{known.path.name} {setting[0]}, {count} images"].append(time.perf_counter() - begun)
            self.compare(known, setting, asked, seeds, result)
            self.counts[kind] += 1

    def expect(self, kind: str, error: type[Exception], runner: Runner, **request: Any) -> None:
        try:
            runner.generate(**request)
        except error:
            self.counts[kind] += 1
        else:
            raise AssertionError(f"a request that should have been {kind} was answered: {request}")

    def compare(self, known: Known, setting: Setting, asked: list[int], seeds: list[int], result: Any) -> None:
        for index, (subject, seed) in enumerate(zip(asked, seeds, strict=True)):
            tokens, image = known.images[setting, subject, seed]
            if not np.array_equal(result.tokens[index], tokens):
                raise AssertionError(f"wrong tokens: {setting}, subject {subject}, seed {seed}, image {index}")
            if image is not None and not np.array_equal(result.images[index], image):
                raise AssertionError(f"wrong pixels: {setting}, subject {subject}, seed {seed}, image {index}")
        self.counts["images compared"] += len(asked)
        self.counts["tokens compared"] += result.tokens.size

    def run(self, seconds: float, threads: int) -> list[int]:
        """Work for so long. Returns the process's resident bytes at a hundred moments."""
        workers = [threading.Thread(target=self.work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        resident = []
        while len(resident) < 100 and not self.stop.wait(seconds / 100):
            resident.append(int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE)
        self.stop.set()
        for worker in workers:
            worker.join()
        for runner in self.shared:
            runner.close()
        return resident


def handles() -> dict[str, int]:
    """Open files and running threads of this process, as the system counts them."""
    gc.collect()
    return {kind: len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task")}


def grown(resident: list[int]) -> Iterator[str]:
    """What is wrong with memory: the last third's median against the middle third's; the first one warms up."""
    third = len(resident) // 3
    if third:
        before, after = (statistics.median(part) for part in (resident[third : 2 * third], resident[-third:]))
        if after > max(before * GROWTH[0], before + GROWTH[1]):
            yield f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB"


def percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, [50, 90, 99, 100])
    shown = dict(zip(("p50", "p90", "p99", "most"), (round(1000 * float(value), 1) for value in values), strict=True))
    return {"requests": len(seconds), **shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    known = [
        Known(path, given.precision) for path in given.bundles
    ]  # the library's own threads and files are there now
    before = handles()
    soak = Soak(known, given.seed)
    begun = time.perf_counter()
    resident = soak.run(given.seconds, given.threads)
    seconds, device = time.perf_counter() - begun, f"{platform.machine()}, {os.cpu_count()} cores"
    after = handles()
    problems = [*soak.problems, *grown(resident)]
    problems += [f"{kind}: {before[kind]} before, {after[kind]} after" for kind in before if after[kind] > before[kind]]
    if not (soak.counts["tokens compared"] and resident):
        problems.append("nothing was compared")
    report = {
        "device": device,
        "precision": given.precision,
        "threads": given.threads,
        "seconds": round(seconds, 1),
        "counts": dict(soak.counts),
        "resident_mib": [round(size / 2**20) for size in resident[:: max(1, len(resident) // 10)]],
        "handles": {"before": before, "after": after},
        "milliseconds": {name: percentiles(times) for name, times in sorted(soak.latencies.items())},
        "problems": problems,
    }
    text = json.dumps(report, indent=1)
    if given.json:
        given.json.write_text(text + "\n", "utf-8")
    print(text)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
