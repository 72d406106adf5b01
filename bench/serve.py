"""Loads `arforge serve` with more than it can do, checks every picture, and says what clients got and when.

    python bench/serve.py BUNDLE [--seconds 600] [--rate 4] [--json FILE]

Requests come at random times, `--rate` times as many images as full batches decode. They mix schedules and settings;
some are streamed with partial images, some hang up, some are malformed or too large. Every picture is compared with
`Runner.generate`'s. Throughput is that of the time in which images waited, against `Runner.generate` of full batches of
the same mix in this process before. Ends with 1 for a wrong picture, a request without an answer, a status that its
request did not ask for, or memory, handles or threads that grow. The bundle's model takes classes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from arforge.runner import Request, Runner
from arforge.runner.device import device_name
from arforge.serving.metrics import SEVERAL

BATCH, WAITING = 8, 64
SEEDS = 3  # of each class, schedule and setting
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"guidance": 4.0}, {"temperature": 0.7, "top_k": 50}, {"greedy": True})
KINDS = {"plain": 60, "several": 15, "stream": 10, "hang up": 8, "malformed": 4, "too large": 3}  # in a hundred
EXPECTED = {"malformed": {400}, "too large": {413}}
OVERLOADED = {200, 429, 504}
GROWTH = 1.1, 32 << 20  # of memory after the first third: a share and bytes, of which the larger counts


@dataclass
class Seen:
    """What clients got."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of requests with pictures
    finished: list[tuple[float, int]] = field(default_factory=list)  # when, and how many images
    faults: list[str] = field(default_factory=list)
    compared: int = 0


class Asked:
    """The pictures that may be asked for, drawn beforehand."""

    def __init__(self, bundle: Path, schedules: list[str], threads: int) -> None:
        self.images: dict[tuple[Any, ...], np.ndarray] = {}
        self.schedules = schedules
        with Runner.open(bundle, threads=threads) as runner:
            self.classes = min(5, runner.bundle.model.class_condition.classes)
            subjects = [label for label in range(self.classes) for _ in range(SEEDS)]
            seeds = [seed for _ in range(self.classes) for seed in range(SEEDS)]
            for schedule in schedules:
                for index, settings in enumerate(SETTINGS):
                    result = runner.generate(Request(subjects, seeds, schedule, **settings))
                    assert result.images is not None
                    for label, seed, image in zip(subjects, seeds, result.images, strict=True):
                        self.images[schedule, index, label, seed] = image
            self.rate = static_rate(runner, schedules)

    def draw(self, choose: random.Random, count: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """A request's body, and its pictures."""
        schedule, index = choose.choice(self.schedules), choose.randrange(len(SETTINGS))
        label, seed = choose.randrange(self.classes), choose.randrange(SEEDS - count + 1)
        body = {"prompt": str(label), "seed": seed, "n": count, "schedule": schedule, **SETTINGS[index]}
        return body, [self.images[schedule, index, label, seed + image] for image in range(count)]


def static_rate(runner: Runner, schedules: list[str]) -> float:
    """Images a second of full batches, as many of each schedule; median of rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for schedule in schedules:
            runner.generate(Request([index % 5 for index in range(2 * BATCH)], schedule=schedule, batch=BATCH))
        rounds.append(2 * BATCH * len(schedules) / (time.perf_counter() - start))
    return statistics.median(rounds)


def pixels_of(data: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


async def one(client: httpx.AsyncClient, asked: Asked, seen: Seen, kind: str, choose: random.Random) -> None:
    """One request of a kind, and what came of it."""
    start = time.perf_counter()
    body, images = asked.draw(choose, choose.randint(2, SEEDS) if kind == "several" else 1)
    post: dict[str, Any] = {"json": body}
    if kind == "malformed":
        post = {"content": choose.choice([b"{", b"[]", b'{"prompt": 3}', b'{"prompt": "1", "n": -1}', b"\xff"])}
    elif kind == "too large":
        post = {"content": b" " * (17 << 20)}
    elif kind == "stream":
        body |= {"stream": True, "partial_images": 2}
    headers = {"Content-Type": "application/json"}
    task = asyncio.ensure_future(client.post("/v1/images/generations", headers=headers, **post))
    if kind == "hang up":
        await asyncio.wait({task}, timeout=choose.uniform(0.0, 1.0))
        if task.cancel():
            seen.statuses["hung up"] += 1
            return
    try:
        answer = await task
    except httpx.HTTPError as error:
        seen.faults.append(f"{kind}: {type(error).__name__} {error}")
        return
    seen.statuses[f"{answer.status_code}"] += 1
    if answer.status_code not in EXPECTED.get(kind, OVERLOADED):
        seen.faults.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
    if answer.status_code != 200:
        return
    seen.seconds.append(time.perf_counter() - start)
    seen.finished.append((time.perf_counter(), len(images)))
    found = streamed(answer.text) if kind == "stream" else [image["b64_json"] for image in answer.json()["data"]]
    seen.compared += len(images)
    if not all(np.array_equal(pixels_of(data), image) for data, image in zip(found, images, strict=True)):
        seen.faults.append(f"wrong picture: {body}")


def streamed(text: str) -> list[str]:
    """The final images of a stream."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    return [event["b64_json"] for event in events if event["type"].endswith("completed")]


async def load(url: str, asked: Asked, seen: Seen, seconds: float, rate: float, pid: int) -> list[dict[str, int]]:
    """Requests at random times; returns what the server used, every few seconds."""
    choose, used, tasks = random.Random(1), [], set()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        start = last = time.perf_counter()
        due = start
        while (now := time.perf_counter()) < start + seconds:
            if now - last > max(1, seconds / 60):
                last = now
                used.append(usage(pid))
            kind = choose.choices(list(KINDS), list(KINDS.values()))[0]
            task = asyncio.ensure_future(one(client, asked, seen, kind, choose))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due = max(due + choose.expovariate(rate), now - 1)
            await asyncio.sleep(max(0, due - time.perf_counter()))
        await asyncio.gather(*tasks)
        await asyncio.sleep(1)
        used.append(usage(pid))
    return used


def usage(pid: int) -> dict[str, int]:
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "handles": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def throughput(finished: list[tuple[float, int]]) -> float:
    """Images a second between the first and the last tenth of the answers, in which images waited."""
    done = sorted(finished)
    middle = done[len(done) // 10 : -(len(done) // 10) or None]
    return sum(images for _, images in middle[1:]) / (middle[-1][0] - middle[0][0])


def grown(used: list[dict[str, int]]) -> list[str]:
    """What grew after the first third."""
    early, final = used[len(used) // 3], used[-1]
    most = max(early["resident"] * GROWTH[0], early["resident"] + GROWTH[1])
    faults = (
        [] if final["resident"] <= most else [f"memory: {early['resident'] >> 20} to {final['resident'] >> 20} MiB"]
    )
    return faults + [
        f"{name}: {early[name]} to {final[name]}" for name in ("threads",) if final[name] > early[name] + 2
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=4, help="of what full batches decode")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--schedule", action="append", help="[default: all stored]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with Runner.open(arguments.bundle, threads=1) as runner:
        schedules = arguments.schedule or list(runner.bundle.specifications)
    asked, seen = Asked(arguments.bundle, schedules, arguments.threads), Seen()
    images_a_request = sum(share * (2.5 if kind == "several" else 1) for kind, share in KINDS.items()) / 100
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["arforge", "serve", str(arguments.bundle), "--port", str(port), "--threads", str(arguments.threads)]
    options = ["--batch", str(BATCH), "--waiting", str(WAITING), "--timeout", "60"]
    environment = {name: value for name, value in os.environ.items() if name != SEVERAL}
    with subprocess.Popen(
        [sys.executable, "-m", *command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            rate = arguments.rate * asked.rate / images_a_request
            used = asyncio.run(load(url, asked, seen, arguments.seconds, rate, server.pid))
            metrics = httpx.get(f"{url}/metrics").text
        finally:
            server.terminate()
    faults = seen.faults + grown(used)
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(),
        "onnxruntime": version("onnxruntime"),
        "bundle": arguments.bundle.name,
        "schedules": schedules,
        "batch": BATCH,
        "waiting": WAITING,
        "threads": arguments.threads,
        "seconds": arguments.seconds,
        "rate": arguments.rate,
        "requests": sum(seen.statuses.values()),
        "statuses": dict(sorted(seen.statuses.items())),
        "images_compared": seen.compared,
        "images_per_second": round(throughput(seen.finished), 2),
        "static_images_per_second": round(asked.rate, 2),
        "images_a_batch": round(images_a_batch(metrics), 2),
        "p50_seconds": round(statistics.median(seen.seconds), 3),
        "p99_seconds": round(statistics.quantiles(seen.seconds, n=100)[98], 3),
        "used": [used[0], used[len(used) // 3], used[-1]],
        "faults": faults[:20],
    }
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if faults else 0


def images_a_batch(metrics: str) -> float:
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("arforge_batch_images_"))
    total = sum(float(value) for name, value in values.items() if name.startswith("arforge_batch_images_sum"))
    return total / sum(float(value) for name, value in values.items() if name.startswith("arforge_batch_images_count"))


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            if server.poll() is not None:
                raise SystemExit("the service did not start") from None
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
