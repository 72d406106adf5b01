"""The example service: a socket, one thread a client, one batcher for all."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_service import WAIT, answer_of, ask, asked, serving

from arforge.runner import Runner

LONG = "GET /?class=0&schedule=ntp&guidance=2"  # what keeps the engine busy


@pytest.fixture(scope="module")
def service(release: Any, bundle: Path) -> Iterator[int]:
    with serving(release, bundle) as port:
        yield port


def test_the_service_answers_with_the_image(service: int, runner: Runner) -> None:
    status, body = ask(service, "GET /?class=7&seed=3&schedule=zipar:4&guidance=1.5")
    assert status == "HTTP/1.1 200 OK"
    images = runner.generate([7], [3], schedule="zipar:4", guidance=1.5).images
    assert images is not None
    assert body == b"P6\n16 16\n255\n" + images.tobytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GET /?class=10", "class 10 is out of range"),
        ("GET /", "no classes given"),
        ("GET /?class=x", "class: 'x' is not a number that fits"),
        ("GET /?class=1x", "class: '1x' is not a number that fits"),
        ("GET /?class=1&seed=-1", "seed: '-1' is not a number that fits"),
        ("GET /?class=1&guidance=", "guidance: '' is not a number that fits"),
        ("GET /?ids=5,1", "takes classes, not ids"),
        ("GET /?class=1&ids=5,1", "classes and ids are given: give one of"),
        ("GET /?class=1&schedule=zip", "unknown schedule"),
        ("GET /?class=1&timeout=0", "timeout 0 is out of range"),
        ("GET /?class=1&timeout=soon", "timeout: 'soon' is not a number that fits"),
        ("GET /?clas=1", "no such parameter: clas"),
        ("POST /?class=1", "send GET"),
    ],
)
def test_the_service_refuses_and_goes_on(service: int, line: str, message: str) -> None:
    status, body = ask(service, line)
    assert status == "HTTP/1.1 400 Bad Request"
    assert message in body.decode()
    assert ask(service, "GET /?class=1")[0] == "HTTP/1.1 200 OK"


def test_the_service_outlives_clients_that_hang_up(service: int) -> None:
    for sent in (b"", b"GET /?class=1", b"GET /?class=1 HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service), timeout=30) as connection:
            connection.sendall(sent)
    assert ask(service, "GET /?class=1")[0] == "HTTP/1.1 200 OK"


def test_the_service_draws_a_prompt_by_its_ids(release: Any, words_bundle: Path) -> None:
    with Runner.open(words_bundle, threads=1) as runner, serving(release, words_bundle) as port:
        status, body = ask(port, "GET /?seed=3&schedule=zipar:4&ids=5,9,1")
        assert status == "HTTP/1.1 200 OK"
        images = runner.generate(ids=[np.array([5, 9, 1])], seeds=[3], schedule="zipar:4").images
        assert images is not None
        assert body == b"P6\n16 16\n255\n" + images.tobytes()
        assert ask(port, "GET /?ids=1&seed=3&schedule=zipar:4&ids=5,9,1")[1] == body  # the last one counts
        for wrong, message in (
            ("ids=5,,1", "ids: '' is not a number that fits"),
            ("ids=5;1", "ids: '5;1' is not a number that fits"),
            ("ids=", "ids: '' is not a number that fits"),
            ("ids=5,-1", "the ids: prompt 0 holds -1: ids are 0 or more"),
            ("class=1", "takes prompts, not classes"),
        ):
            status, body = ask(port, f"GET /?{wrong}")
            assert status == "HTTP/1.1 400 Bad Request"
            assert message in body.decode()


def picture(runner: Runner, label: int, seed: int, schedule: str, guidance: float) -> bytes:
    images = runner.generate([label], [seed], schedule=schedule, guidance=guidance).images
    assert images is not None
    return b"P6\n16 16\n255\n" + images.tobytes()


def batches(log: Path, images: int) -> list[int]:
    """Those decoded, from what the service says: its last word may come after an answer."""
    sizes: list[int] = []
    end = time.monotonic() + WAIT
    while sum(sizes) < images and time.monotonic() < end:
        sizes = [int(size) for size in re.findall(r"a batch of (\d+)\n", log.read_text())]
    return sizes


def test_clients_at_a_time_share_batches_and_get_what_they_get_alone(
    release: Any, bundle: Path, runner: Runner, tmp_path: Path
) -> None:
    asking = [(n % 10, n, ("zipar:2", "ntp")[n % 2], 1.0 + n % 4) for n in range(40)]
    found: dict[int, tuple[str, bytes]] = {}
    with (tmp_path / "log").open("w") as log, serving(release, bundle, log=log) as port:

        def client(index: int) -> None:
            label, seed, schedule, guidance = asking[index]
            found[index] = ask(port, f"GET /?class={label}&seed={seed}&schedule={schedule}&guidance={guidance}")

        threads = [threading.Thread(target=client, args=(index,)) for index in range(len(asking))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sizes = batches(tmp_path / "log", len(asking))
    for index, (status, body) in found.items():
        assert status == "HTTP/1.1 200 OK"
        assert body == picture(runner, *asking[index])
    assert sum(sizes) == len(found) == 40
    assert 1 < max(sizes) <= 8


def test_a_full_queue_is_503_and_a_late_request_504(release: Any, bundle: Path) -> None:
    with serving(release, bundle) as port:
        for _ in range(20):  # until they come faster than they are answered
            many = [asked(port, LONG) for _ in range(100)]
            heads = [answer_of(connection)[0] for connection in many]
            refused = [head for head in heads if head[0] == "HTTP/1.1 503 Service Unavailable"]
            assert all("Retry-After: 1" in head for head in refused)
            assert sum(head[0] == "HTTP/1.1 200 OK" for head in heads) == 100 - len(refused)
            if refused:
                break
        assert 0 < len(refused) < 100
        busy = asked(port, LONG)
        status, body = ask(port, "GET /?class=1&timeout=0.0001")
        assert status == "HTTP/1.1 504 Gateway Timeout"
        assert body == b"the images were not done after 0.0001 s: ask for fewer, or wait longer\n"
        assert answer_of(busy)[0][0] == "HTTP/1.1 200 OK"


def test_clients_that_hang_up_make_room(release: Any, bundle: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, serving(release, bundle, log=log) as port:
        gone = [asked(port, LONG) for _ in range(60)]
        for connection in gone:
            connection.close()
        assert ask(port, "GET /?class=1")[0] == "HTTP/1.1 200 OK"
        for _ in range(3):
            assert ask(port, LONG)[0] == "HTTP/1.1 200 OK"
        assert 4 <= sum(batches(tmp_path / "log", 4)) < 64
