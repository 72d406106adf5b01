"""Seconds of whole images on the CPU: arforge by every schedule, others by next-token decoding, all they have.

python bench/images.py --output bench/results/images.json --image "openvino int8" l.bundle ntp \
    --image "arforge int8" l.bundle ntp --image "arforge int8" l.bundle zipar:8 [--batch 1 --batch 8] [--rounds 3]

Rows take turns in every round, and every round draws other pictures; the ratio is the median over rounds of a row's
time to the first row's. Seconds are from the request to the last token, the prompt, guidance and sampling included with
arforge; peers of `bench/peers.py` leave the latter two out. An image with guidance is two rows. Bundles may be of
several models. Random weights take as long as any, but drafts of `jacobi:L` need a trained model: `bench/widen.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cpu import PAUSE, Remote
from peers import PEERS, Setting

from arforge.runner.device import device_name, streaming_bandwidth


class Row(NamedTuple):
    peer: str
    bundle: Path
    schedule: str


def measure(rows: list[Row], batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A peer's process serves all rows of its bundle."""
    remotes: dict[tuple[str, Path], Remote] = {}
    for row in rows:
        if (row.peer, row.bundle) not in remotes:
            setting = Setting((row.bundle,), arguments.threads, row.bundle.resolve().parent, batch)
            remotes[row.peer, row.bundle] = Remote(row.peer, setting)
    taken: dict[Row, list[float]] = {row: [] for row in rows}
    calls: dict[Row, list[float]] = {row: [] for row in rows}
    bandwidth = []
    for turn in range(arguments.rounds + 1):
        bandwidth.append(streaming_bandwidth(arguments.threads))
        for row in rows:
            time.sleep(PAUSE)
            image = (row.schedule, arguments.prompt, arguments.seed + turn * batch)
            seconds, _, needed, _ = remotes[row.peer, row.bundle].measure(image)
            if turn:  # the first round warms up
                taken[row].append(seconds)
                calls[row].append(needed)
    found = []
    for row, seconds in taken.items():
        ratios = [one / first for one, first in zip(seconds, taken[rows[0]], strict=True)]
        of_a_call = [image / count for image, count in zip(seconds, calls[row], strict=True)]
        found.append(
            {
                "peer": row.peer,
                "version": remotes[row.peer, row.bundle].version,
                "model": row.bundle.stem,
                "schedule": row.schedule,
                "calls": statistics.mean(calls[row]),
                "batch": batch,
                "seconds": statistics.median(seconds),
                "seconds_an_image": statistics.median(seconds) / batch,
                "milliseconds_a_call": 1000 * statistics.median(of_a_call),
                "times_of_the_first": statistics.median(ratios),
                "rounds_seconds": seconds,
                "rounds_calls": calls[row],
            }
        )
        what = f"{row.peer:24} {row.bundle.stem:20} {row.schedule:12}"
        took = f"{found[-1]['seconds_an_image']:8.3f} s an image  {found[-1]['times_of_the_first']:6.3f}"
        took += f"  {found[-1]['calls']:6.1f} calls of {found[-1]['milliseconds_a_call']:6.2f} ms"
        print(f"batch {batch}  {what} {took}", flush=True)
    found[0]["rounds_memory_bytes_per_second"] = bandwidth
    for remote in remotes.values():
        remote.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--image",
        nargs=3,
        action="append",
        required=True,
        metavar=("PEER", "BUNDLE", "SCHEDULE"),
        help=", ".join(PEERS),
    )
    parser.add_argument("--batch", action="append", type=int, help="images decoded together; default 1, 8")
    parser.add_argument("--rounds", type=int, default=3, help="behind one that warms up")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt, of models that take one")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows = [Row(peer, Path(bundle), schedule) for peer, bundle, schedule in arguments.image]
    if unknown := {row.peer for row in rows} - PEERS.keys():
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {"arforge": version("arforge")},
        "kernels": os.environ.get("ARFORGE_KERNELS", ""),
        "threads": arguments.threads,
        "rows": [],
    }
    for batch in arguments.batch or [1, 8]:
        figures["rows"] += measure(rows, batch, arguments)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
