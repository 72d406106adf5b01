"""Time of a decoding step on the CPU against others, in one run, peer after peer in every round.

python bench/cpu.py --bundle l.bundle --output bench/results/cpu.json [--width 1 …] [--slot 288] [--rounds 9]
python bench/cpu.py --bundle j-int8.bundle --bundle j-int4.bundle --schedule ntp --schedule zipar:8 --rounds 2 …
python bench/cpu.py --bundle l.bundle --schedule ntp --images 8 …
python bench/cpu.py --make LlamaGen-L.bundle

An image with guidance is two rows; each peer decodes the same number of tokens a row after the same number of tokens
before. Peers live in processes of their own, and wait while another is measured. With `--schedule`, whole images are
made: the prompt, every step, and with arforge sampling and the picture of the tokens, which llama.cpp does without. Its
steps are those of the schedule too. `--make` exports random weights and builds the engines; `bench/at_size.py` those
of other families. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers import PEERS, Setting, steps_of

from arforge.runner.bundle import open_bundle
from arforge.runner.device import device_name, streaming_bandwidth

PAUSE = 0.5  # seconds before a peer's turn: threads of the one before it go on waiting busily for a while
Steps = list[tuple[int, int]]  # slot and width of each
Image = tuple[str, int, int]  # a schedule, tokens of the prompt, and the first seed
UNUSUAL = ("int4", "Q4_0", "too", "products")
USUAL = [name for name in PEERS if not name.startswith("openvino") and not name.endswith(UNUSUAL)]


def serve(connection: Connection, name: str, setting: Setting) -> None:
    """The process of one peer: takes steps as (slot, width), gives the seconds of all but the first.

    With the first the caches are filled up to its slot. Of an image it gives what `Drawn` says, and CPU time of all of
    it.
    """
    try:
        peer = PEERS[name](setting)
        connection.send(peer.version)
        while (asked := connection.recv()) is not None:
            if isinstance(asked, tuple):
                before = time.process_time()
                drawn = peer.image(*asked)
                connection.send([*drawn, time.process_time() - before])
                continue
            seconds = []
            for slot, width in asked:
                start = time.perf_counter()
                peer.step(slot, width)
                seconds.append(time.perf_counter() - start)
            connection.send(seconds[1:])
    except (Exception, SystemExit):  # noqa: BLE001 -- whatever it is, the parent says it and stops
        connection.send(traceback.format_exc())


@dataclass
class Remote:
    name: str
    setting: Setting

    def __post_init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.name, self.setting), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is noticed
        self.version = self.answer(str)

    def answer(self, kind: type) -> Any:
        try:
            given = self.connection.recv()
        except EOFError:
            raise SystemExit(f"{self.name} ended without a word") from None
        if not isinstance(given, kind) or (isinstance(given, str) and "Traceback" in given):
            raise SystemExit(f"{self.name} failed:\n{given}")
        return given

    def measure(self, asked: Steps | Image) -> list[float]:
        self.connection.send(asked)
        seconds: list[float] = self.answer(list)
        return seconds

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def compare(
    remotes: list[Remote], asked: Steps | Image, rounds: int, figure: Callable[[list[float]], float]
) -> dict[str, Any]:
    """Median of each peer's `figure` of its seconds, and the median over rounds of what it is to the first peer's."""
    seconds: dict[str, list[list[float]]] = {remote.name: [] for remote in remotes}
    bandwidth = []
    for _ in range(rounds):
        bandwidth.append(streaming_bandwidth(remotes[0].setting.threads))
        for remote in remotes:
            time.sleep(PAUSE)
            seconds[remote.name].append(remote.measure(asked))
    taken = {name: [figure(one) for one in rounds] for name, rounds in seconds.items()}
    parts = {"rounds_seconds_of_tokens_and_picture_calls_cpu_seconds": seconds} if isinstance(asked, tuple) else {}
    first = taken[remotes[0].name]
    return {
        "medians": {name: statistics.median(values) for name, values in taken.items()},
        "rounds": taken,
        **parts,
        "rounds_memory_bytes_per_second": bandwidth,
        "times_of_the_first": {
            name: statistics.median(theirs / ours for theirs, ours in zip(values, first, strict=True))
            for name, values in taken.items()
        },
    }


def compare_steps(remotes: list[Remote], slot: int, width: int, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step."""
    for remote in remotes:
        remote.measure([(slot, width)] * 3)  # warm-up: memory, and compilation
    asked = [(slot + index * width, width) for index in range(steps + 1)]
    figures = compare(remotes, asked, rounds, lambda seconds: 1000 * statistics.median(seconds))
    return {"width": width, "slot": slot, "unit": "ms", **figures}


def compare_images(remotes: list[Remote], schedule: str, bundle: Path, prompt: int, rounds: int) -> dict[str, Any]:
    """Seconds of a batch; with one thread the CPU time beside them tells what it takes beside other work."""
    steps = len(steps_of(open_bundle(bundle), schedule))
    figures = compare(remotes, (schedule, prompt, 0), rounds, lambda parts: sum(parts[:2]))
    return {"schedule": schedule, "prompt": prompt, "steps": steps, "unit": "s", **figures}


def make(bundle: Path) -> None:
    """LlamaGen-L at 24×24 with random weights, and its engines."""
    from build_engines import export

    from arforge.engines.onnxruntime import build

    export("llamagen", "L", (24, 24), bundle.parent).rename(bundle)
    for precision in ("fp32", "int8"):
        build(bundle, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, metavar="BUNDLE", help="make the bundle that is measured, and stop")
    parser.add_argument("--bundle", type=Path, action="append", help="repeatable: arforge runs the one with its engine")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help=f"default: {', '.join(USUAL)}")
    parser.add_argument("--width", action="append", type=int, help="tokens a row and step; default 1, 4, 24")
    parser.add_argument("--schedule", action="append", help="time whole images in place of steps, such as zipar:8")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt before a whole image")
    parser.add_argument("--slot", type=int, default=288, help="tokens before the measured ones: half of an image")
    parser.add_argument("--steps", type=int, default=4, help="in a row, of which a round takes the median")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1, help="of a batch")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make)
        return
    if not arguments.bundle or not arguments.output:
        parser.error("--bundle and --output are needed")
    bundles = tuple(arguments.bundle)
    setting = Setting(bundles, arguments.threads, bundles[0].resolve().parent, arguments.images)
    names = arguments.peer or USUAL
    remotes = [Remote(name, setting) for name in names]
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {"arforge": version("arforge"), **{remote.name: remote.version for remote in remotes}},
        "model": bundles[0].stem,
        "rows": setting.rows,
        "threads": arguments.threads,
        "cpus": os.cpu_count(),
        "measured": [],
    }
    measures = [
        partial(compare_steps, remotes, arguments.slot, width, arguments.steps)
        for width in arguments.width or ([] if arguments.schedule else [1, 4, 24])
    ]
    measures += [
        partial(compare_images, remotes, schedule, bundles[0], arguments.prompt)
        for schedule in arguments.schedule or []
    ]
    for measure in measures:
        row = measure(arguments.rounds)
        figures["measured"].append(row)
        print(f"width {row['width']}" if "width" in row else f"{row['schedule']}, {row['steps']} steps", flush=True)
        for name, ratio in row["times_of_the_first"].items():
            print(f"  {name:22} {row['medians'][name]:8.2f} {row['unit']}  {ratio:6.2f} × {names[0]}", flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    for remote in remotes:
        remote.close()


if __name__ == "__main__":
    main()
