"""Every check that waits for a GPU, in one go: correctness first, then speed, on a machine with one GPU.

python bench/gpu.py --output bench/results/gpu.json [--minutes 8] [--work FOLDER] [--only tokens …]

Weights are random. Each part is a process of its own with a limit for each of its items: what crashes or hangs is
recorded and left out, the rest goes on. The file is written anew after every item, so that whatever ends this script
leaves what was found before. The order is that of value: what is cut by the time is at the end.
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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("gpu_parts.py")
LOOK = 0.1  # seconds between looks at a part that runs
LEAST = 5  # seconds that are worth beginning something in
SPARE = 2  # seconds left for the file
SAID = 1500  # letters of what a part that failed has said last
SMALL = ("llamagen", "par", "arpg", "llamagen-t2i", "janus")
PEERS = ("onnxruntime-cuda", "torch-compile")


@dataclass(frozen=True)
class Part:
    """Items that one process does one after another; it is started again behind one that ends it."""

    name: str
    items: Sequence[str]
    seconds: float  # that an item may take


def parts(targets: Sequence[str], view: bool) -> Iterator[Part]:
    """What follows the look at the machine. `targets`: the TensorRTs that it has; `view`: whether that is an option."""
    yield Part("models", [*SMALL, "size"], 60)
    for target in targets:
        quick = [f"{family} {precision}" for precision in ("fp32", "fp16") for family in SMALL]
        yield Part(f"tokens {target}", [*quick, "llamagen loop", "llamagen verify"], 60)
    for target in targets:
        attention = ["fp16 view"] if view and target == "tensorrt-rtx" else []
        yield Part(f"speed {target}", ["fp16", "fp16 jacobi", *attention, "fp16 batch"], 90)
    for peer in PEERS:
        yield Part(f"speed {peer}", ["fp16"], 75)
    for target in targets:
        if view and target == "tensorrt-rtx":
            yield Part(f"view {target}", ["llamagen verify", "arpg verify"], 60)
        more = [f"{family} {precision}" for precision in ("int8", "int4", "bf16") for family in ("llamagen", "par")]
        yield Part(f"tokens {target}, more", more, 60)
        yield Part(f"speed {target}, more", ["int4", "int8"], 120)


class Figures:
    """The file that is written."""

    def __init__(self, path: Path, minutes: float, words: Sequence[str]) -> None:
        self.path, self.start = path, time.monotonic()
        self.deadline = self.start + 60 * minutes - SPARE
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
        """Seconds that there still are."""
        return self.deadline - time.monotonic()

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


def run_part(part: Part, figures: Figures, work: Path) -> dict[str, Any]:
    """Do the items of a part, each at most once; returns what was found."""
    left, found = list(part.items), dict[str, Any]()
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
    parser.add_argument("--only", action="append", help="parts whose names begin so; default all")
    arguments = parser.parse_args(words)
    figures = Figures(arguments.output, arguments.minutes, words)
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        found = run_part(Part("machine", ["facts"], 60), figures, work)["facts"]
        if not found.get("gpu"):
            print(f"there is no GPU to run on: {found.get('error') or found.get('reason')}", file=sys.stderr)
            return 1
        for part in parts(found["targets"], found["view"]):
            if not arguments.only or any(part.name.startswith(name) for name in arguments.only):
                print(f"{part.name}, {figures.left:.0f} s left", file=sys.stderr, flush=True)
                run_part(part, figures, work)
    problems = list(figures.problems())
    print("\n".join(problems) or "all of it ran", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
