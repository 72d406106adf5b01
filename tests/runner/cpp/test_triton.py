"""The backend for Triton: what the runner gives, through a real tritonserver where its wheel is unpacked."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ids import prompt_of

from arforge.runner import Runner

SERVER = Path(__file__).parents[3] / "build/triton/pytriton/tritonserver/bin/tritonserver"
WAIT = 120
CONFIGURATION = """
name: "{name}"
backend: "arforge"
max_batch_size: 8
input [ {inputs}, {{ name: "seed" data_type: TYPE_UINT64 dims: [ 1 ] }} ]
output [
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }}, {{ name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] }}
]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "threads" value: {{ string_value: "1" }} }}
"""
INPUT = '{{ name: "{}" data_type: TYPE_{} dims: [ {} ]{} }}'
CLASS = ("class", "INT64", "1", "")
Infer = Callable[..., tuple[int, Any]]


def get(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=WAIT) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]
    except OSError:
        return 0, None


def tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    kind = array.dtype.name.upper().replace("FLOAT", "FP")
    return {"name": name, "datatype": kind, "shape": list(array.shape), "data": array.ravel().tolist()}


@pytest.fixture(scope="module")
def server(
    release: Any,
    bundle: Path,
    ids_bundle: Path,
    arpg_bundle: Path,
    words_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Its address."""
    if not SERVER.exists():
        pytest.skip("no tritonserver: make build/triton/.ready")
    folder = tmp_path_factory.mktemp("triton")
    known = ("known", "INT64", "-1, -1", " optional: true")
    for name, path, inputs in (
        ("tiny", bundle, [CLASS]),
        ("ids", ids_bundle, [("ids", "INT64", "-1", "")]),
        ("arpg", arpg_bundle, [CLASS, known]),
        ("words", words_bundle, [("features", "FP32", "-1, -1", "")]),
    ):
        shutil.copytree(path, folder / "models" / name / "1/model.bundle")
        text = CONFIGURATION.format(name=name, inputs=", ".join(INPUT.format(*one) for one in inputs))
        (folder / "models" / name / "config.pbtxt").write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        str(SERVER), f"--model-repository={folder / 'models'}", f"--backend-directory={release.prefix / 'lib/triton'}",
        "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
    ]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        address = f"http://127.0.0.1:{port}/v2"
        end = time.monotonic() + WAIT
        while get(f"{address}/health/ready")[0] != 200:
            alive = process.poll() is None and time.monotonic() < end
            assert alive, (folder / "log").read_text()[-4000:]
            time.sleep(0.1)
        yield address
        process.terminate()
        assert process.wait(WAIT) == 0


@pytest.fixture
def infer(server: str) -> Infer:
    def ask(model: str, asked: dict[str, np.ndarray], **settings: Any) -> tuple[int, Any]:
        body = {"inputs": [tensor(*one) for one in asked.items()], "parameters": settings}
        status, answer = get(f"{server}/models/{model}/infer", body)
        if status != 200:
            return status, answer
        return status, {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}

    return ask


def classes(*labels: int) -> dict[str, np.ndarray]:
    """Images of classes, with these as seeds too."""
    column = np.array(labels)[:, None]
    return {"class": column, "seed": column.astype(np.uint64)}


@pytest.mark.servers
def test_pictures_are_the_runners_and_requests_share_batches(server: str, infer: Infer, runner: Runner) -> None:
    asked: list[tuple[list[int], dict[str, Any]]] = [
        ([n % 10, 3] if n % 4 == 0 else [n % 10], {"schedule": ("zipar:2", "jacobi:4")[n % 2], "guidance": 1.0 + n % 3})
        for n in range(24)
    ]
    asked += [([1], {"top_k": 3, "top_p": 0.9, "temperature": 0.5}), ([2], {"greedy": True}), ([4], {"guidance": 2})]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: infer("tiny", classes(*one[0]), **one[1]), asked))
    for (labels, settings), (status, outputs) in zip(asked, found, strict=True):
        expected = runner.generate(labels, seeds=labels, **settings)
        assert status == 200
        np.testing.assert_array_equal(outputs["tokens"], expected.tokens)
        np.testing.assert_array_equal(outputs["image"], expected.images)
    _, said = get(f"{server}/models/tiny/stats")
    assert said["model_stats"][0]["inference_count"] == 27 + 6
    assert said["model_stats"][0]["execution_count"] < 27
    assert said["model_stats"][0]["inference_stats"]["success"]["count"] == 27


@pytest.mark.servers
def test_prompts_by_ids(infer: Infer, ids_runner: Runner) -> None:
    prompts = [prompt_of(9, seed=4), prompt_of(6, seed=5)]
    ids = np.full((2, 9), -1)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    settings = {"guidance": 2.0, "unconditional": "image"}
    status, outputs = infer("ids", {"ids": ids, "seed": np.array([[7], [8]], np.uint64)}, **settings)
    assert status == 200
    expected = ids_runner.generate(ids=prompts, seeds=[7, 8], **settings)
    np.testing.assert_array_equal(outputs["tokens"], expected.tokens)


@pytest.mark.servers
def test_known_cells_stay(infer: Infer, arpg_runner: Runner) -> None:
    known = np.full((2, 4, 6), -1)
    known[:, :, :3] = 5
    status, outputs = infer("arpg", {**classes(2, 9), "known": known})
    assert status == 200
    np.testing.assert_array_equal(outputs["tokens"], arpg_runner.generate([2, 9], seeds=[2, 9], known=known).tokens)
    status, outputs = infer("arpg", classes(2, 9))
    assert status == 200
    np.testing.assert_array_equal(outputs["tokens"], arpg_runner.generate([2, 9], seeds=[2, 9]).tokens)
    status, said = infer("arpg", {**classes(2), "known": np.zeros((1, 3, 6), np.int64)})
    assert status == 400
    assert "a grid of 3x6 is out of range" in said


@pytest.mark.servers
def test_prompts_by_features(infer: Infer, words_bundle: Path) -> None:
    with Runner.open(words_bundle, threads=1) as runner:
        width = runner.bundle.model.condition.width
        features = np.random.default_rng(0).standard_normal((2, 4, width), np.float32)
        status, outputs = infer("words", {"features": features, "seed": np.array([[5], [6]], np.uint64)})
        assert status == 200
        expected = runner.generate(features=list(features), seeds=[5, 6])
        np.testing.assert_array_equal(outputs["tokens"], expected.tokens)
        status, said = infer("words", {"features": features[..., 1:], "seed": np.array([[5], [6]], np.uint64)})
        assert status == 400
        assert "features" in said


@pytest.mark.servers
@pytest.mark.parametrize(
    ("label", "settings", "message"),
    [
        (99, {}, "class 99 is out of range: use 0 to 9"),
        (1, {"schedule": "zip"}, "unknown schedule 'zip'"),
        (1, {"schedul": "ntp"}, "no such parameter: schedul"),
        (1, {"guidance": "two"}, "parameter guidance is of another type"),
        (1, {"guidance": 0}, "guidance 0 is out of range"),
    ],
)
def test_what_does_not_fit_is_the_clients_error(infer: Infer, label: int, settings: Any, message: str) -> None:
    status, said = infer("tiny", classes(label), **settings)
    assert status == 400
    assert message in said
    assert infer("tiny", classes(1))[0] == 200


def test_the_backend_has_the_functions_that_a_server_looks_for(release: Any) -> None:
    said = subprocess.run(
        ["nm", "-D", "--defined-only", release.prefix / "lib/triton/arforge/libtriton_arforge.so"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in ("ModelInitialize", "ModelFinalize", "ModelInstanceExecute"):
        assert f" T TRITONBACKEND_{name}\n" in said
