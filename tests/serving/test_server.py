"""`arforge serve` as a process: it drains when told to stop, and brings back workers that were killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from click.testing import CliRunner
from http_service import WAIT, pixels_of, until

from arforge.cli import main
from arforge.runner import Request, Runner

ASKED = {"prompt": "3", "seed": 5, "schedule": "zipar:2"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    command = [sys.executable, "-m", "arforge", "serve", str(bundle), "--port", str(port), "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready)
        yield process, url
    finally:
        process.kill()
        process.wait(WAIT)


def draw(url: str, **asked: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/generations", json={**ASKED, **asked}, timeout=WAIT)


def test_what_runs_is_answered_after_sigterm(bundle: Path, runner: Runner) -> None:
    options = ("--batch", "1", "--max-images", "100", "--waiting", "100")  # longer than it takes to look
    with served(bundle, *options) as (process, url), ThreadPoolExecutor(1) as threads:
        running = threads.submit(draw, url, n=100, schedule="ntp")
        until(lambda: "arforge_requests_running 1.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        answer = running.result(WAIT)
        assert answer.status_code == 200
        expected = runner.generate(Request([3] * 100, seeds=range(5, 105), schedule="ntp")).images
        assert expected is not None
        for one, image in zip(answer.json()["data"], expected, strict=True):
            np.testing.assert_array_equal(pixels_of(one["b64_json"]), image)
        assert process.wait(WAIT) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}


def test_a_worker_that_is_killed_comes_back(bundle: Path, runner: Runner) -> None:
    image = runner.generate(Request([3], seeds=[5], schedule="zipar:2")).images
    assert image is not None
    with served(bundle, "--workers", "2") as (process, url):
        workers = children(process.pid)
        assert len(workers) == 2
        with ThreadPoolExecutor(4) as threads:
            waiting = [threads.submit(answer_or_error, url) for _ in range(12)]
            os.kill(workers[0], signal.SIGKILL)
            answers = [one.result(WAIT) for one in waiting]
        assert {type(one) for one in answers} <= {httpx.Response, httpx.ReadError, httpx.RemoteProtocolError}
        until(lambda: len(children(process.pid)) == 2 and workers[0] not in children(process.pid))
        for _ in range(4):
            found = draw(url)
            np.testing.assert_array_equal(pixels_of(found.json()["data"][0]["b64_json"]), image[0])
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def answer_or_error(url: str) -> object:
    try:
        return draw(url)
    except httpx.TransportError as error:
        return error


def children(pid: int) -> list[int]:
    """Worker processes: those that have opened the bundle."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat, command = path.read_text(), (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        if parent == pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return sorted(found)


def test_the_command_says_what_is_wrong(bundle: Path, exported_bundle: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["serve", *arguments])
        assert done.exit_code != 0
        return done.output

    key = tmp_path / "key"
    key.write_text("two words")
    assert "holds 2 words: write the key into it, and nothing else" in said(str(bundle), "--api-key-file", str(key))
    for options in ((), ("--workers", "2")):
        output = said(str(tmp_path / "none.bundle"), *options)
        assert output.startswith("Error: ")
        assert "none.bundle: make one with `arforge export`" in output
        assert "two bundles are called" in said(str(bundle), str(bundle), *options)
        assert "has no onnxruntime fp32 engine" in said(str(exported_bundle), *options)
    assert "Missing argument" in said()
    assert "--batch" in said(str(bundle), "--batch", "0")
