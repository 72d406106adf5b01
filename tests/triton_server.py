"""A real tritonserver on the loopback, with the models of a repository: that of the wheel nvidia-pytriton, unpacked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
WHEEL = ROOT / "build/triton"  # `make build/triton/.ready`
SERVER = WHEEL / "pytriton/tritonserver/bin/tritonserver"
KINDS = {"INT64": np.int64, "UINT64": np.uint64, "UINT8": np.uint8, "FP32": np.float32}
START, STOP = 120, 30  # seconds


@dataclass
class Triton:
    http: int
    grpc: int
    metrics: int
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/{path}", timeout=START) as answer:
            return json.loads(answer.read() or "null")

    def infer(self, model: str, inputs: dict[str, Any], parameters: dict[str, Any] | None = None) -> Any:
        """KServe v2 in JSON: (status, arrays by output), or (status, the error's text)."""
        body = {"inputs": [as_json(name, value) for name, value in inputs.items()], "parameters": parameters or {}}
        return self.post(model, json.dumps(body).encode())

    def post(self, model: str, body: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/v2/models/{model}/infer", body)
        try:
            with urllib.request.urlopen(request, timeout=START) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text)["error"] if text.startswith("{") else text
        outputs = found["outputs"]
        return 200, {
            one["name"]: np.array(one["data"], KINDS[one["datatype"]]).reshape(one["shape"]) for one in outputs
        }

    def batches(self, model: str) -> dict[int, int]:
        """How many batches of each number of images were decoded."""
        (stats,) = self.get(f"models/{model}/stats")["model_stats"]
        return {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in stats["batch_stats"]}

    def figures(self) -> str:
        """What Prometheus is given."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=START) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


def as_json(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):  # as it is
        return {"name": name, **value}
    if isinstance(value, list):  # of texts
        return {"name": name, "shape": [len(value), 1], "datatype": "BYTES", "data": value}
    kind = {np.dtype(one): name for name, one in KINDS.items()}[value.dtype]
    return {"name": name, "shape": list(value.shape), "datatype": kind, "data": value.reshape(-1).tolist()}


def column(*values: int, kind: Any = np.int64) -> NDArray[Any]:
    """[images, 1]."""
    return np.array(values, kind)[:, None]


@contextmanager
def running(repository: Path, log: Path, *, loads: bool = True) -> Iterator[Triton]:
    """A server until the block ends. `loads`: whether all models are to load; else it is given once it has ended."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        http, grpc, metrics = (one.getsockname()[1] for one in sockets)
    prefix = f"arforge-{os.getpid()}-{http}"
    command = [
        *(SERVER, f"--model-repository={repository}", f"--backend-directory={SERVER.parents[1] / 'backends'}"),
        *(f"--backend-config=python,shm-region-prefix-name={prefix}", "--exit-timeout-secs=20"),
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"),
        *(f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
    ]
    libraries = sysconfig.get_config_var("LIBDIR")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, text=True)
    triton = Triton(http, grpc, metrics, process, log)
    try:
        if loads:
            wait_ready(triton)
        else:
            process.wait(START)
        yield triton
    finally:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP)
        left = [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(prefix)]
        for name in left:
            (Path("/dev/shm") / name).unlink()
    assert not left or not loads


def wait_ready(triton: Triton) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and triton.alive:
        try:
            triton.get("health/ready")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"tritonserver is not ready: {triton.log.read_text()[-4000:]}")


def missing() -> str | None:
    """Why there is no server to test with, or None."""
    if not SERVER.is_file():
        return f"{SERVER} is not there: make test-serving"
    return None if shutil.which("bash") and sys.platform == "linux" else "tritonserver is for Linux"


def environment(folder: Path, *front: Path) -> Path:
    """A virtual environment with what is installed in this one, and arforge, behind what lies in other folders."""
    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    paths = [*front, ROOT, sysconfig.get_path("purelib")]
    (packages / "all.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder
