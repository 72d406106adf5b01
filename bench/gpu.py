"""Every check that waits for a GPU, in one go: correctness first, then speed, on a machine with one GPU.

python bench/gpu.py --output bench/results/gpu.json [--minutes 8] [--work FOLDER] [--path FOLDER …] [--only tokens …]

Weights are random. Each part is a process of its own with a limit for each of its items: what crashes or hangs is
recorded and left out, the rest goes on. The file is written anew after every item, so that whatever ends this script
leaves what was found before. The order is that of value, and each part has its share of the time: what one does not
take is there for those behind it, and none takes from them.

It needs Python alone to begin. What the machine lacks is named, and costs the parts that need it (`gpu_needs.py`):
packages, and TensorRT's libraries, may lie in folders that --path names; bundles that were made elsewhere in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_needs import hint

SCRIPT = Path(__file__).with_name("gpu_parts.py")
LOOK = 0.1  # seconds between looks at a part that runs
LEAST = 5  # seconds that are worth beginning something in
SPARE = 2  # seconds left for the file
SAID = 1500  # letters of what a part that failed has said last
SMALL = ("llamagen", "par", "arpg", "llamagen-t2i", "janus")
SIZE, MACHINE = "size", "machine"
NOTHING: Mapping[str, str] = {}
PEERS = ("torch-compile", "onnxruntime-cuda")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """Items that one process does one after another; it is started again behind one that ends it."""

    name: str
    items: Sequence[str]
    seconds: float  # that an item may take without news of it
    share: float = 1  # of the time, beside those of the other parts

    @property
    def runtime(self) -> str:
        return self.name.removesuffix(", more").partition(" ")[2]

    def bundle(self, item: str) -> str:
        """The model that an item runs."""
        if self.name.startswith("models"):
            return item
        return SIZE if self.name.startswith("speed") else item.partition(" ")[0]


def parts(targets: Sequence[str]) -> Iterator[Part]:
    """What follows the look at the machine. `targets`: the TensorRTs that it has."""
    yield Part("models", SMALL, 60, share=40)
    for target in targets:
        quick = [f"{family} {precision}" for precision in ("fp32", "fp16") for family in SMALL]
        yield Part(f"tokens {target}", [*quick, "llamagen jacobi", "llamagen verify"], 60, share=100)
    views = [target for target in targets if target == "tensorrt-rtx"]
    for target in views:
        yield Part(f"view {target}", ["llamagen verify", "arpg verify"], 60, share=20)
    yield Part("models, size", [SIZE], 120, share=60)
    for target in targets:
        attention = ["fp16 view"] if target in views else []
        yield Part(f"speed {target}", ["fp16", "fp16 jacobi", *attention, "fp16 batch"], 90, share=120)
    for target in targets:
        more = [f"{family} {precision}" for precision in ("int8", "int4", "bf16") for family in SMALL]
        yield Part(f"tokens {target}, more", more, 60, share=60)
    for peer in PEERS:
        yield Part(f"speed {peer}", ["fp16"], 60, share=20)
    for target in targets:
        yield Part(f"speed {target}, more", ["int4", "int8"], 90, share=40)


def chosen(every: Sequence[Part], names: Sequence[str] | None, work: Path) -> list[Part]:
    """Parts whose names begin so (None: all), and what makes the models that they run, where those are not there."""
    wanted = [part for part in every if names is None or any(part.name.startswith(name) for name in names)]
    used = {part.bundle(item) for part in wanted for item in part.items}
    kept = []
    for part in every:
        items = part.items
        if part.name.startswith("models"):
            items = [item for item in items if item in used and not (work / f"{item}.bundle").exists()]
        if items and (part in wanted or part.name.startswith("models")):
            kept.append(replace(part, items=items))
    return kept


class Figures:
    """The file that is written."""

    def __init__(self, path: Path, minutes: float, words: Sequence[str]) -> None:
        self.path, self.start = path, time.monotonic()
        self.deadline = self.until = self.start + 60 * minutes - SPARE
        self.content: dict[str, Any] = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["python", "bench/gpu.py", *words],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "minutes": minutes,
            "parts": {},
        }
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds that there still are for the part at hand."""
        return self.until - time.monotonic()

    def shares(self, planned: Sequence[Part]) -> Iterator[Part]:
        """The parts, each with `left` up to the end of its share of what is left now; that of the last is the end."""
        begin, whole, taken = time.monotonic(), sum(part.share for part in planned), 0.0
        for part in planned:
            taken += part.share
            self.until = begin + (self.deadline - begin) * taken / whole
            yield part

    def enter(self, part: str, items: dict[str, Any]) -> None:
        self.content["parts"].setdefault(part, {}).update(items)
        self.content["seconds"] = round(time.monotonic() - self.start, 1)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)

    def problems(self) -> Iterator[str]:
        for part, items in self.content["parts"].items():
            for item, found in items.items():
                if "error" in found or "skipped" in found:
                    yield f"{part}, {item}: {found.get('error') or found['skipped']}"


def run_part(part: Part, figures: Figures, work: Path, lacks: Mapping[str, str] = NOTHING) -> dict[str, Any]:
    """Do the items of a part, each at most once; returns what was found. `lacks`: what the machine cannot import."""
    left, found = list(part.items), dict[str, Any]()
    if part.name != MACHINE and (reason := hint(part.name, lacks)):
        found, left = {item: {"skipped": reason} for item in left}, []
    elif part.name != MACHINE and not part.name.startswith("models"):
        there = {item: (work / f"{part.bundle(item)}.bundle").exists() for item in left}
        found = {item: {"skipped": f"there is no {part.bundle(item)}.bundle"} for item in left if not there[item]}
        left = [item for item in left if there[item]]
    while left and figures.left > LEAST:
        state, reason = run_items(part, left, figures, work)
        found |= state["done"]
        left = [item for item in left if item not in state["done"]]
        if reason and left:
            found[left[0]] = {**state["so_far"], "error": reason}
            left = left[1:]
            figures.enter(part.name, found)
    found |= {item: {"skipped": "no time was left"} for item in left}
    figures.enter(part.name, found)
    return found


def run_items(part: Part, items: Sequence[str], figures: Figures, work: Path) -> tuple[dict[str, Any], str | None]:
    """One process for some items; its last state, and why it did not come to the end of them."""
    path, log = work / "state.json", work / "said.txt"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), part.name, str(work), str(path), *items]
    with log.open("w") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    state: dict[str, Any] = {"done": {}, "so_far": {}}
    changed, reason = time.monotonic(), None
    try:
        while child.poll() is None:
            time.sleep(LOOK)
            if (newer := read_state(path)) not in (None, state):
                state, changed = newer or state, time.monotonic()
                figures.enter(part.name, state["done"])
            if time.monotonic() - changed > part.seconds:
                reason = f"it hung: ended after {part.seconds:g} s"
                break
            if figures.left <= 0:
                reason = "the time was up"
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and whatever it has started
        child.wait()
    state = read_state(path) or state
    if reason is None and child.returncode:
        reason = f"{ended(child.returncode)}: {log.read_text(errors='replace')[-SAID:].strip()}"
    if reason is None and len(state["done"]) < len(items):
        reason = "it ended before its time"
    return state, reason


def read_state(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return state


def ended(status: int) -> str:
    return f"it crashed by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--minutes", type=float, default=8, help="that it may take; default 8")
    parser.add_argument("--work", type=Path, help="folder for bundles, some 4 GB; default: a new one, removed again")
    parser.add_argument("--path", type=Path, action="append", default=[], help="folder of packages, or of libraries")
    parser.add_argument("--only", action="append", help="parts whose names begin so; default all")
    arguments = parser.parse_args(words)
    for name, folders in (("PYTHONPATH", [ROOT, *arguments.path]), ("LD_LIBRARY_PATH", arguments.path)):
        before = [os.environ[name]] if os.environ.get(name) else []
        os.environ[name] = os.pathsep.join([*before, *(str(folder.absolute()) for folder in folders)])
    figures = Figures(arguments.output, arguments.minutes, words)
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        found = run_part(Part(MACHINE, ["facts"], 60), figures, work)["facts"]
        if not found.get("gpu"):
            print(f"there is no GPU to run on: {found.get('error') or found.get('reason')}", file=sys.stderr)
            return 1
        for part in figures.shares(chosen(list(parts(found["targets"])), arguments.only, work)):
            print(f"{part.name}, {figures.left:.0f} s left", file=sys.stderr, flush=True)
            run_part(part, figures, work, found["lacks"])
    problems = list(figures.problems())
    print("\n".join(problems) or "all of it ran", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
