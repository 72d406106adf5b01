"""Time of a decoding step on the CPU against others, in one run, peer after peer in every round.

python bench/cpu.py --bundle l.bundle --output bench/results/cpu.json [--width 1 …] [--slot 288] [--rounds 9]
python bench/cpu.py --make LlamaGen-L.bundle

One image with guidance is two rows; each peer decodes the same number of tokens a row after the same number of tokens
before. Peers live in processes of their own, and wait while another is measured. `--make` exports random weights and
builds the engines. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers import PEERS, Setting

from arforge.runner.device import device_name, streaming_bandwidth


def serve(connection: Connection, name: str, setting: Setting) -> None:
    """The process of one peer: takes (slot, width, steps), gives the seconds of each step."""
    try:
        peer = PEERS[name](setting)
        connection.send(peer.version)
        while (asked := connection.recv()) is not None:
            slot, width, steps = asked
            peer.step(slot, width)  # the caches are filled up to the slot, outside of the figures
            seconds = []
            for index in range(1, steps + 1):
                start = time.perf_counter()
                peer.step(slot + index * width, width)
                seconds.append(time.perf_counter() - start)
            connection.send(seconds)
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

    def measure(self, slot: int, width: int, steps: int) -> list[float]:
        self.connection.send((slot, width, steps))
        seconds: list[float] = self.answer(list)
        return seconds

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def compare(remotes: list[Remote], slot: int, width: int, steps: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each peer, and the median over rounds of its time to the first peer's."""
    for remote in remotes:
        remote.measure(slot, width, 2)  # warm-up: memory, and compilation
    taken: dict[str, list[float]] = {remote.name: [] for remote in remotes}
    bandwidth = []
    for _ in range(rounds):
        bandwidth.append(streaming_bandwidth(remotes[0].setting.threads))
        for remote in remotes:
            taken[remote.name].append(1000 * statistics.median(remote.measure(slot, width, steps)))
    first = taken[remotes[0].name]
    return {
        "width": width,
        "slot": slot,
        "ms_per_step": {name: statistics.median(values) for name, values in taken.items()},
        "rounds_ms": taken,
        "rounds_memory_bytes_per_second": bandwidth,
        "times_of_the_first": {
            name: statistics.median(theirs / ours for theirs, ours in zip(values, first, strict=True))
            for name, values in taken.items()
        },
    }


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
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all")
    parser.add_argument("--width", action="append", type=int, help="tokens a row and step; default 1, 4, 24")
    parser.add_argument("--slot", type=int, default=288, help="tokens before the measured ones: half of an image")
    parser.add_argument("--steps", type=int, default=4, help="in a row, of which a round takes the median")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make)
        return
    if not arguments.bundle or not arguments.output:
        parser.error("--bundle and --output are needed")
    setting = Setting(arguments.bundle, arguments.threads, arguments.bundle.resolve().parent)
    names = arguments.peer or list(PEERS)
    remotes = [Remote(name, setting) for name in names]
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {"arforge": version("arforge"), **{remote.name: remote.version for remote in remotes}},
        "model": arguments.bundle.stem,
        "rows": 2,
        "threads": arguments.threads,
        "cpus": os.cpu_count(),
        "steps": [],
    }
    for width in arguments.width or (1, 4, 24):
        row = compare(remotes, arguments.slot, width, arguments.steps, arguments.rounds)
        figures["steps"].append(row)
        print(f"width {width}, {arguments.slot} tokens before", flush=True)
        for name, ratio in row["times_of_the_first"].items():
            print(f"  {name:22} {row['ms_per_step'][name]:8.2f} ms  {ratio:6.2f} × {names[0]}", flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    for remote in remotes:
        remote.close()


if __name__ == "__main__":
    main()
