"""The service on Ray Serve, and data sets on Ray Data: real Ray, once."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray_cluster import cluster

from arforge.runner import Request, RequestError, Runner
from arforge.runner.request import Subjects
from arforge.serving.dataset import Job, Shard

pytestmark = [pytest.mark.servers, pytest.mark.filterwarnings("ignore")]
WAIT = 120


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with cluster() as started:
        yield started


class Door:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=WAIT) as answer:
            found: bytes = answer.read()
        return found

    def draw(self, **asked: Any) -> tuple[int, Any]:
        body = json.dumps(asked).encode()
        request = urllib.request.Request(
            f"{self.address}/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return 200, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError) as error:
            return 0, str(error)


@pytest.fixture(scope="module")
def door(ray: Any, bundle: Path) -> Iterator[Door]:
    from ray import serve

    from arforge.serving.ray_serve import Settings, application

    assert ray.is_initialized()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(Settings(bundles=str(bundle))), route_prefix="/")
    yield Door(port)
    serve.shutdown()


def pixels(answer: tuple[int, Any]) -> np.ndarray:
    status, content = answer
    assert status == 200, content
    files = [base64.b64decode(one["b64_json"]) for one in content["data"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def test_replicas_give_the_runners_pictures_whatever_comes_with_them(door: Door, runner: Runner) -> None:
    asked = [{"prompt": str(label), "seed": label, "schedule": "zipar:2", "n": 1 + label % 2} for label in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: door.draw(**one), asked))
    for label, answer in enumerate(answers):
        count = 1 + label % 2
        expected = runner.generate([label] * count, seeds=range(label, label + count), schedule="zipar:2").images
        np.testing.assert_array_equal(pixels(answer), expected)
    status, message = door.draw(prompt="9999")
    assert status == 400
    assert "class 9999 is out of range" in message
    assert door.get("/health/ready") == b"ready"


def test_a_replica_that_dies_is_replaced_and_no_client_waits_for_ever(door: Door, runner: Runner, ray: Any) -> None:
    (replica,) = [one for one in workers(ray) if "ServeReplica" in one["class_name"]]
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(door.draw, prompt="1", seed=one, schedule="ntp", n=8) for one in range(8)]
        time.sleep(0.1)
        os.kill(replica["pid"], signal.SIGKILL)
        statuses = [future.result(WAIT)[0] for future in waiting]
    assert all(status in {200, 500, 502, 503, 0} for status in statuses), statuses
    end = time.monotonic() + WAIT
    while (answer := door.draw(prompt="3", seed=4, schedule="ntp"))[0] != 200:
        assert time.monotonic() < end, answer
        time.sleep(0.2)
    np.testing.assert_array_equal(pixels(answer), runner.generate([3], seeds=[4], schedule="ntp").images)
    (again,) = [one for one in workers(ray) if "ServeReplica" in one["class_name"]]
    assert again["pid"] != replica["pid"]


def workers(ray: Any) -> list[dict[str, Any]]:
    """Living actors."""
    from ray._private.state import actors

    found = [
        {"class_name": one["ActorClassName"], "pid": one["Pid"]} for one in actors().values() if one["State"] == "ALIVE"
    ]
    assert found or ray.is_initialized()
    return found


def job_of(bundle: Path, folder: Path, **changes: Any) -> Job:
    facts: dict[str, Any] = {
        "images": 60, "subjects": Subjects("classes", (1, 2, 3)), "kind": "webdataset", "rows": 5, "threads": 1,
        "precision": "fp32", "request": Request(schedule="zipar:2", batch=5),
    }  # fmt: skip
    return Job(bundle=bundle, folder=folder, **{**facts, **changes})


def test_workers_errors_are_the_commands(ray: Any, bundle: Path, tmp_path: Path) -> None:
    from arforge.serving.ray_data import on_ray

    job = job_of(bundle, tmp_path, subjects=Subjects("classes", (999,)))
    with pytest.raises(RequestError, match="class 999 is out of range"):
        on_ray(job, [Shard(0, 0, 5)], lambda done, total: None)
    on_ray(job, [], lambda done, total: None)
    assert not list(tmp_path.iterdir())
    assert ray.is_initialized()


def test_a_data_set_survives_the_death_of_the_command_and_of_a_worker(ray: Any, bundle: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "rows", 150
    command = [
        sys.executable, "-m", "arforge", "generate", bundle, "--output", folder, "--images", images, "--rows", 5,
        "--class", "1-3", "--schedule", "zipar:2", "--batch", 5, "--format", "webdataset", "--threads", 1, "--ray",
        "--quiet",
    ]  # fmt: skip
    words = [str(word) for word in command]

    def files() -> list[Path]:
        return sorted(folder.glob("images-*.tar"))

    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(files()) >= 3, first)
    first.kill()  # the command
    first.wait(WAIT)
    time.sleep(1)  # its workers die with it
    there = len(files())
    assert there < 30
    second = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(files()) >= there + 2, second)
    killed = [one for one in workers(ray) if "MapWorker" in one["class_name"] or "Worker" in one["class_name"]]
    assert killed
    for one in killed:
        os.kill(one["pid"], signal.SIGKILL)
    out, err = second.communicate(timeout=WAIT)
    assert second.returncode == 0, err
    assert f"{images} rows in 30 files" in out
    assert sorted(path.name for path in folder.iterdir()) == ["generation.json", *(path.name for path in files())]
    names: list[str] = []
    for path in files():
        with tarfile.open(path) as archive:
            names += [name for name in archive.getnames() if name.endswith(".png")]
    assert names == [f"{number:012d}.png" for number in range(images)]
    job = job_of(bundle, tmp_path / "alone", images=images)
    job.folder.mkdir()
    with job.open() as opened:
        for shard in (job.shards[0], job.shards[-1]):
            job.write(opened, shard)
            assert job.path(shard).read_bytes() == (folder / job.path(shard).name).read_bytes()


def wait_for(holds: Any, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
