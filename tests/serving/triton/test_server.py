"""Bundles served by a real tritonserver: over KServe v2 in JSON, and over gRPC with NVIDIA's client."""

from __future__ import annotations

import json
import queue
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
from made_once import made_once
from numpy.typing import NDArray
from tiny import CONFIG
from tiny_ids import prompt_of
from triton_server import Triton, column, environment, running

from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import Result, Runner, open_bundle
from arforge.serving.triton.repository import Model, write_models

pytestmark = pytest.mark.servers
WAIT = 60
OLD_NUMPY = triton_server.ROOT / "build/numpy-1.26"


def seeds(*values: int) -> NDArray[np.uint64]:
    return column(*values, kind=np.uint64)


def equal(found: tuple[int, Any], expected: Result) -> None:
    status, outputs = found
    assert status == 200, outputs
    np.testing.assert_array_equal(outputs["image"], expected.images)
    np.testing.assert_array_equal(outputs["tokens"], expected.tokens)


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Of 4,096 cells: an image by next-token takes seconds, many times what it takes to ask whether it is cancelled."""

    def make(path: Path) -> None:
        config = replace(CONFIG, grid=(64, 64))
        export_bundle(ExportJob(FAMILY, config, checkpoint, None, path, ("ntp", "zipar:2")))
        onnxruntime.build(path)

    return made_once(tmp_path_factory, "long.bundle", make)


@pytest.fixture(scope="module")
def triton(
    bundle: Path,
    ids_bundle: Path,
    words_bundle: Path,
    arpg_bundle: Path,
    long_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Triton]:
    if reason := triton_server.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("triton")
    usual = environment(folder / "environment")
    old = environment(folder / "old", OLD_NUMPY)
    for path, name, prompts, where, streams in (
        (bundle, "tiny", "bytes", usual, True),
        (arpg_bundle, "arpg", "bytes", usual, False),
        (ids_bundle, "ids", "uint8", usual, False),
        (words_bundle, "words", "bytes", old, False),
        (long_bundle, "long", "bytes", usual, False),
    ):
        model = Model(name, "onnxruntime", "fp32", 1, waiting=24, prompts=prompts, environment=where)
        write_models(open_bundle(path), model, folder / "models", previews=streams)
    with running(folder / "models", folder / "log") as server:
        yield server
        text = server.log.read_text()
        assert server.alive, text[-4000:]
        assert "Traceback" not in text
        assert "Exception" not in text


@contextmanager
def busy(triton: Triton) -> Iterator[None]:
    """The model is at work on this request while the block begins, so that what is sent there waits."""
    whole = {"class": column(*[0] * 8), "seed": seeds(*range(8))}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(triton.infer, "tiny", whole, {"schedule": "ntp"})
        yield
        assert first.result(WAIT)[0] == 200


def test_pictures_are_those_of_the_runner_whatever_is_in_the_batch(triton: Triton, runner: Runner) -> None:
    asked: list[tuple[list[int], dict[str, Any]]] = [
        ([7], {"schedule": "zipar:2", "guidance": 2.0}),
        ([1, 2], {"schedule": "zipar:2", "temperature": 0.7, "top_k": 5}),
        ([3], {"schedule": "ntp", "top_p": 0.5}),
        ([4], {"schedule": "zipar:2", "greedy": True}),
        ([5], {}),
        ([6], {"schedule": "jacobi:4"}),
    ]

    def infer(one: tuple[list[int], dict[str, Any]]) -> tuple[int, Any]:
        classes, settings = one
        return triton.infer("tiny", {"class": column(*classes), "seed": seeds(*classes)}, settings)

    before = triton.batches("tiny")
    with busy(triton), ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(infer, asked))
    for (classes, settings), one in zip(asked, found, strict=True):
        equal(one, runner.generate(classes, seeds=classes, **settings))
    batches = triton.batches("tiny")
    grown = {size: count - before.get(size, 0) for size, count in batches.items() if count > before.get(size, 0)}
    assert sum(grown.values()) < 1 + len(asked), grown  # some were decoded together
    assert sum(size * count for size, count in grown.items()) == 8 + 7


def test_known_cells_stay(triton: Triton, arpg_runner: Runner) -> None:
    known = np.full((1, 4, 6), -1)
    known[:, :, :3] = 5
    inputs = {"class": column(2), "seed": seeds(9)}
    equal(triton.infer("arpg", {**inputs, "known": known}), arpg_runner.generate([2], seeds=[9], known=known))
    equal(triton.infer("arpg", inputs), arpg_runner.generate([2], seeds=[9]))


def test_prompts_come_as_bytes_of_utf_8_or_as_ids(triton: Triton, ids_runner: Runner) -> None:
    texts = ["a cat", "a dog and a cat on the mat"]
    with ThreadPoolExecutor(4) as pool:
        words = [
            pool.submit(triton.infer, "ids", {"prompt": np.frombuffer(text.encode(), np.uint8)[None], "seed": seeds(3)})
            for text in texts
        ]
        ids = [prompt_of(6, seed=1), prompt_of(11, seed=2)]
        others = [pool.submit(triton.infer, "ids", {"ids": one[None], "seed": seeds(4)}) for one in ids]
        for text, future in zip(texts, words, strict=True):
            equal(future.result(WAIT), ids_runner.generate(prompts=[text], seeds=[3]))
        for one, future in zip(ids, others, strict=True):
            equal(future.result(WAIT), ids_runner.generate(ids=[one], seeds=[4]))
    padded = np.frombuffer(b"a cat\0\0\0\0a red dog", np.uint8).reshape(2, 9)
    equal(
        triton.infer("ids", {"prompt": padded, "seed": seeds(1, 2)}),
        ids_runner.generate(prompts=["a cat", "a red dog"], seeds=[1, 2]),
    )
    status, message = triton.infer("ids", {"prompt": padded[:1], "ids": ids[0][None], "seed": seeds(1)})
    assert status == 400
    assert message == "prompt and ids is given: give one of the model's inputs class, prompt, features, ids"


def test_prompts_come_as_texts_with_numpy_1(triton: Triton, words_bundle: Path) -> None:
    texts = ["a red heart", "two \u00e4pples"]
    with Runner.open(words_bundle, threads=1) as own:
        expected = own.generate(prompts=texts, seeds=[1, 2], captions="raw")
        found = triton.infer("words", {"prompt": texts, "seed": seeds(1, 2)}, {"captions": "raw"})
        equal(found, expected)
        features = np.random.default_rng(0).standard_normal((1, 4, own.bundle.model.condition.width), np.float32)
        found = triton.infer("words", {"features": features, "seed": seeds(5)})
        equal(found, own.generate(features=list(features), seeds=[5]))


def test_a_model_of_texts_does_not_load_where_they_would_come_out_wrong(ids_bundle: Path, tmp_path: Path) -> None:
    if reason := triton_server.missing():
        pytest.skip(reason)
    model = Model("ids", "onnxruntime", "fp32", 1, environment=environment(tmp_path / "environment"))
    write_models(open_bundle(ids_bundle), model, tmp_path / "models", previews=False)
    with running(tmp_path / "models", tmp_path / "log", loads=False) as server:
        assert server.process.returncode == 1
    assert "cannot read texts with numpy 2: use Triton 24.12 or later, install 'numpy<2'" in server.log.read_text()


def test_each_failure_is_one_requests_own(triton: Triton, runner: Runner) -> None:
    good = {"class": column(7), "seed": seeds(3)}
    for inputs, parameters, text in (
        ({**good, "class": column(999)}, {}, "class 999 is out of range: use 0 to"),
        (good, {"schedule": "par:4"}, "order"),
        (good, {"schedul": "ntp"}, "parameter 'schedul' is unknown: use schedule, guidance"),
        (good, {"guidance": 1e9}, "guidance 1000000000.0 is out of range"),
        (good, {"previews": 3}, "parameter 'previews' is unknown"),
        ({"class": column(7)}, {}, "missing required input"),
        ({**good, "class": column(*range(9)), "seed": seeds(*range(9))}, {}, "batch-size must be <= 8"),
    ):
        with busy(triton), ThreadPoolExecutor(2) as pool:
            bad = pool.submit(triton.infer, "tiny", inputs, parameters)
            beside = pool.submit(triton.infer, "tiny", good, {"schedule": "zipar:2"})
            status, message = bad.result(WAIT)
            equal(beside.result(WAIT), runner.generate([7], seeds=[3], schedule="zipar:2"))
        assert status == 400
        assert text in message


def test_a_full_queue_refuses_and_who_waits_too_long_is_told(triton: Triton) -> None:
    one = {"class": column(*[7] * 8), "seed": seeds(*range(8))}
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: triton.infer("tiny", one, {"schedule": "ntp"}), range(48)))
    refused = [message for status, message in found if status != 200]
    assert {status for status, _ in found} == {200, 503}
    assert all("Exceeds maximum queue size" in message for message in refused), refused
    assert len(refused) <= 48 - 24
    with busy(triton), ThreadPoolExecutor(3) as pool:
        time.sleep(0.02)
        late = pool.map(lambda _: triton.infer("tiny", one, {"schedule": "ntp", "timeout": 1}), range(3))
        late = [one for one in late if one[0] != 200]
    assert all((status, message) == (503, "Request timeout expired") for status, message in late)


def test_metrics_and_health_are_tritons(triton: Triton) -> None:
    assert triton.get("models/tiny/ready") is None
    assert 'nv_inference_request_success{model="tiny"' in triton.figures()


class Stream:
    """Answers of NVIDIA's gRPC client, in order."""

    def __init__(self, triton: Triton) -> None:
        grpc = pytest.importorskip("tritonclient.grpc")
        self.grpc, self.answers = grpc, queue.Queue[Any]()
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")

    def inputs(self, classes: NDArray[np.int64], seed: NDArray[np.uint64]) -> list[Any]:
        made = []
        for name, value, kind in (("class", classes, "INT64"), ("seed", seed, "UINT64")):
            one = self.grpc.InferInput(name, value.shape, kind)
            one.set_data_from_numpy(value)
            made.append(one)
        return made

    def put(self, result: Any, error: Any) -> None:
        self.answers.put(error or result)

    def until_last(self) -> list[Any]:
        found = []
        while True:
            answer = self.answers.get(timeout=WAIT)
            found.append(answer)
            if isinstance(answer, Exception):
                return found
            if answer.get_response().parameters["triton_final_response"].bool_param:
                return found


def test_partial_images_are_streamed_before_the_last(triton: Triton, runner: Runner) -> None:
    stream = Stream(triton)
    stream.client.start_stream(stream.put)
    stream.client.async_stream_infer(
        "tiny_stream",
        stream.inputs(column(3, 4), seeds(1, 2)),
        parameters={"schedule": "ntp", "previews": 20, "undecided": "grey", "guidance": 2.0},
    )
    found = stream.until_last()
    stream.client.async_stream_infer("tiny_stream", stream.inputs(column(999), seeds(1)))
    refused = stream.until_last()
    stream.client.stop_stream()
    assert "class 999 is out of range" in str(refused[-1])
    expected = runner.generate([3, 4], seeds=[1, 2], schedule="ntp", guidance=2.0)
    assert [one.as_numpy("done").tolist() for one in found] == [[[done]] * 2 for done in (20, 40, 60, 64)]
    assert all(one.as_numpy("index").tolist() == [[0], [1]] for one in found)
    np.testing.assert_array_equal(found[-1].as_numpy("image"), expected.images)
    for one in found:
        tokens = one.as_numpy("tokens")
        assert (tokens >= 0).sum() == 2 * one.as_numpy("done")[0, 0]
        np.testing.assert_array_equal(tokens[tokens >= 0], expected.tokens[tokens >= 0])
    assert (found[0].as_numpy("image") == 128).any()


def test_streams_come_over_http_too(triton: Triton, runner: Runner) -> None:
    body = {"class": 7, "seed": 3, "parameters": {"schedule": "ntp", "previews": 32}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{triton.http}/v2/models/tiny_stream/generate_stream", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [one["done"] for one in events] == [32, 64]
    assert events[-1]["tokens"] == runner.generate([7], seeds=[3], schedule="ntp").tokens[0].tolist()


def test_a_client_that_cancels_stops_its_request(triton: Triton, runner: Runner) -> None:
    stream = Stream(triton)
    answers = queue.Queue[Any]()
    kept = cancelled(triton)
    for attempt in range(1, 6):  # until it has begun when it is cancelled, on a machine however busy
        call = stream.client.async_infer(
            "long",
            stream.inputs(column(*range(8)), seeds(*range(8))),
            lambda result, error: answers.put(error or result),
            parameters={"schedule": "ntp", "guidance": 2.0},
        )
        time.sleep(0.2 * attempt)
        call.cancel()
        answers.get(timeout=WAIT)
        triton.infer("long", {"class": column(7), "seed": seeds(3)}, {"schedule": "zipar:2"})  # behind it
        if cancelled(triton) > kept:
            break
    assert cancelled(triton) > kept
    equal(triton.infer("tiny", {"class": column(7), "seed": seeds(3)}), runner.generate([7], seeds=[3]))


def cancelled(triton: Triton) -> int:
    """Requests that the model has stopped."""
    (line,) = [one for one in triton.figures().splitlines() if '"long"' in one and 'outcome="CANCELLED"' in one]
    return int(float(line.rpartition(" ")[2]))


def test_whatever_comes_in_the_server_answers_and_lives(triton: Triton, runner: Runner) -> None:
    random = np.random.default_rng(0)
    kinds = ["INT64", "UINT64", "UINT8", "FP32", "BYTES", "INT32", "BOOL", "FP16", "none", 3, None]
    shapes: list[Any] = [[1, 1], [2, 1], [0, 1], [1, 0], [1], [], [9, 1], [1, 2], [1, -1], [64, 1], "1", None, [1.5]]
    values: list[Any] = [[7], [7, 8], [], [-1], [2**63], [1.5], ["7"], ["\u0000"], [None], [[7]], {}, "7", None]
    settings: list[Any] = [
        "schedule", "guidance", "top_k", "greedy", "captions", "negative", "previews", "timeout", "priority",
        "sequence_id", "triton_x", "", "seed",
    ]  # fmt: skip
    given: list[Any] = ["ntp", "zipar:2", "x" * 9999, "zipar:999999", 1, 0, -1, 2**62, 1e300, True, "", [], {}, None]
    statuses: dict[int, int] = {}

    def pick(options: list[Any]) -> Any:
        return options[random.integers(len(options))]

    for _ in range(400):
        model = pick(["tiny", "tiny", "ids", "words", "arpg", "tiny_stream"])
        names = ["class", "seed", "ids", "prompt", "features", "known", "x"]
        inputs = {"class": column(7), "seed": seeds(3)} if random.random() < 0.7 else {}
        if model in ("ids", "words") and inputs:
            inputs = {"seed": inputs["seed"], "prompt": column(97, kind=np.uint8) if model == "ids" else ["a"]}
        for _ in range(random.integers(0, 3)):
            inputs[pick(names)] = {"datatype": pick(kinds), "shape": pick(shapes), "data": pick(values)}
        parameters = {pick(settings): pick(given) for _ in range(random.integers(0, 3))}
        status, found = triton.infer(model, inputs, parameters)
        statuses[status] = statuses.get(status, 0) + 1
        assert status == 200 or (400 <= status <= 503 and isinstance(found, str) and found), (inputs, parameters)
        assert status != 500 or "arforge" not in found, found
    for body in (b"", b"{", b"[]", b'{"inputs": 3}', b"\0" * 1000, json.dumps({"inputs": []}).encode()):
        status, message = triton.post("tiny", body)
        assert status >= 400
        assert message
    assert triton.alive
    assert {200, 400} <= set(statuses), statuses
    equal(triton.infer("tiny", {"class": column(7), "seed": seeds(3)}), runner.generate([7], seeds=[3]))
