"""The C++ example service in a process of its own, and what tests ask of it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

WAIT = 60  # seconds, where all is well


@contextmanager
def serving(release: Any, bundle: Path, *options: str, log: IO[str] | None = None) -> Iterator[int]:
    """The port that the example service listens on."""
    command = [str(release.program("arforge-service")), str(bundle), "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:  # else a test that fails waits for ever
            process.kill()


def asked(port: int, line: str) -> socket.socket:
    """A connection over which this was asked."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    connection.sendall(f"{line} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    return connection


def answer_of(connection: socket.socket) -> tuple[list[str], bytes]:
    """The lines of its head, and its body."""
    with connection:
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body


def ask(port: int, line: str) -> tuple[str, bytes]:
    head, body = answer_of(asked(port, line))
    return head[0], body
