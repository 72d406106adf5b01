"""/v1/images/generations: the pictures are `Runner.generate`'s, and each request has one clear answer."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from http_service import WAIT, Running, counted, pixels_of, until
from PIL import ExifTags, Image

from arforge.runner import Request, Runner
from arforge.serving.limits import Limits


@pytest.fixture
def client(service: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def expected(service: Running, name: str, **asked: Any) -> np.ndarray:
    images = service.served(name).runner.generate(Request(**asked)).images
    assert images is not None
    return images


def test_the_openai_client_gets_the_runners_pictures(service: Running, client: openai.OpenAI) -> None:
    settings = {"schedule": "zipar:2", "temperature": 0.9, "top_k": 9, "top_p": 0.8}
    answer = client.images.generate(
        model="raster", prompt="name 7", n=3, extra_body={"seed": 5, "guidance_scale": 2.5, **settings}
    )
    images = expected(service, "raster", classes=[7] * 3, seeds=[5, 6, 7], guidance=2.5, **settings)
    assert answer.data is not None
    assert len(answer.data) == 3
    for one, image in zip(answer.data, images, strict=True):
        assert one.b64_json is not None
        np.testing.assert_array_equal(pixels_of(one.b64_json), image)
    assert [one.model_extra for one in answer.data] == [{"seed": 5}, {"seed": 6}, {"seed": 7}]
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")


def test_a_seed_that_is_left_out_is_drawn_and_said(service: Running) -> None:
    bodies = [service.post(json={"model": "raster", "prompt": "3"}).json() for _ in range(2)]
    seeds = [body["data"][0]["seed"] for body in bodies]
    assert seeds[0] != seeds[1]
    again = service.post(json={"model": "raster", "prompt": "3", "seed": seeds[0]}).json()
    assert again["data"][0]["b64_json"] == bodies[0]["data"][0]["b64_json"]


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_a_file_says_what_makes_it_again(service: Running, kind: str) -> None:
    asked = {"model": "raster", "prompt": "4", "seed": 2**64 - 1, "guidance": 3, "schedule": "zipar:4"}
    body = service.post(json={**asked, "output_format": kind}).json()
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as image:
        if kind == "png":
            text = image.info["parameters"]
        else:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            text = bytes(comment).removeprefix(b"ASCII\0\0\0")
        found = json.loads(text)
        pixels = np.asarray(image.convert("RGB"))
    assert found == {**asked, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "greedy": False}
    image = expected(service, "raster", classes=[4], seeds=[2**64 - 1], guidance=3, schedule="zipar:4")[0]
    if kind == "jpeg":
        assert np.abs(pixels.astype(int) - image).mean() < 30
    else:
        np.testing.assert_array_equal(pixels, image)
    repeated = service.post(json={**found, "output_format": kind}).json()
    assert repeated["data"][0]["b64_json"] == body["data"][0]["b64_json"]


def test_compression_makes_files_smaller(service: Running) -> None:
    def size(kind: str, compression: int) -> int:
        asked = {"model": "raster", "prompt": "4", "seed": 1, "output_format": kind, "output_compression": compression}
        return len(service.post(json=asked).json()["data"][0]["b64_json"])

    assert size("jpeg", 10) < size("jpeg", 90)
    assert size("webp", 5) < size("webp", 100)
    assert size("png", 100) < size("png", 0)


def test_one_image_comes_raw_where_the_client_accepts_that(service: Running) -> None:
    headers = {"Accept": "image/webp, */*"}
    answer = service.post(json={"model": "raster", "prompt": "1", "seed": 9}, headers=headers)
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/webp", "9")
    np.testing.assert_array_equal(pixels_of(answer.content), expected(service, "raster", classes=[1], seeds=[9])[0])
    several = service.post(json={"model": "raster", "prompt": "1", "n": 2}, headers=headers)
    assert several.headers["content-type"] == "application/json"


def test_a_larger_size_is_drawn_by_a_model_that_can(service: Running) -> None:
    body = service.post(json={"model": "arpg", "prompt": "1", "size": "20x8", "seed": 3, "schedule": "arpg:4"}).json()
    known = np.full((4, 10), -1)
    image = expected(service, "arpg", classes=[1], seeds=[3], schedule="arpg:4", known=known)[0]
    np.testing.assert_array_equal(pixels_of(body["data"][0]["b64_json"]), image)
    assert body["size"] == "20x8"


def test_a_stream_shows_partial_images_then_the_final_ones(service: Running, client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="raster", prompt="7", n=2, stream=True, partial_images=3, extra_body={"seed": 1, "undecided": "grey"}
    )
    events = list(stream)
    kinds = [(event.type, event.model_extra["image_index"]) for event in events if event.model_extra]
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert kinds == [(partial, 0), (partial, 1)] * 3 + [(completed, 0), (completed, 1)]
    images = expected(service, "raster", classes=[7, 7], seeds=[1, 2])
    for event, image in zip(events[-2:], images, strict=True):
        np.testing.assert_array_equal(pixels_of(event.b64_json), image)
    greys = [(pixels_of(event.b64_json) == 128).all(axis=2).mean() for event in events[0:6:2]]
    assert greys == pytest.approx([0.75, 0.5, 0.25], abs=0.02)
    assert [event.partial_image_index for event in events[0:6:2]] == [0, 1, 2]


def test_partial_images_are_not_made_where_nobody_asks(client: openai.OpenAI) -> None:
    stream = client.images.generate(model="raster", prompt="7", stream=True)
    assert [event.type for event in stream] == ["image_generation.completed"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"prompt": "99"}, 400, "class 99 is out of range"),
        ({"prompt": "nothing like it"}, 400, "is none of the model's"),
        ({"prompt": " "}, 400, "the prompt is empty: this model draws classes"),
        ({"prompt": "1" * 4001}, 400, "prompt is longer than this service's limit of 4000 characters"),
        ({"prompt": "1", "n": 7}, 400, "n 7 is more than this service's limit of 6 images"),
        ({"prompt": "1", "n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"prompt": "1", "n": "many"}, 400, "n: Input should be a valid integer"),
        ({"prompt": "1", "size": "512x512"}, 400, "size 512x512 has more than 4096 pixels"),
        ({"prompt": "1", "size": "17x17"}, 400, "not a whole number of 2-pixel tokens"),
        ({"prompt": "1", "size": "32x32"}, 400, "size 32x32: this model makes 16x16 only"),
        ({"prompt": "1", "size": "-1x4"}, 400, "is no WIDTHxHEIGHT"),
        ({"prompt": "1", "size": "9" * 400 + "x4"}, 400, "is no WIDTHxHEIGHT"),
        ({"prompt": "1", "schedule": "arpg:4"}, 400, "decodes in random order"),
        ({"prompt": "1", "schedule": "zipar:99999999"}, 400, ""),
        ({"prompt": "1", "guidance": -3}, 400, "guidance -3.0 is out of range"),
        ({"prompt": "1", "top_p": 7}, 400, "top-p 7.0 is out of range"),
        ({"prompt": "1", "seed": 2**64}, 400, "seed: Input should be less than or equal to"),
        ({"prompt": "1", "negative_prompt": "a"}, 400, "knows no negative"),
        ({"prompt": "1", "partial_images": 99}, 400, "partial_images 99 is more than the limit of 8"),
        ({"prompt": "1", "response_format": "url"}, 400, "response_format: Input should be 'b64_json'"),
        ({"prompt": "1", "background": "transparent"}, 400, "background: Input should be 'auto' or 'opaque'"),
        ({"prompt": "1", "bundle": "/etc/passwd"}, 400, "bundle: Extra inputs are not permitted"),
        ({"prompt": "1", "model": "../raster"}, 404, "no model '../raster': there is raster, arpg"),
        ({"n": 1}, 400, "prompt: Field required"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    service: Running, asked: dict[str, Any], status: int, message: str
) -> None:
    answer = service.post(json={"model": "raster", **asked})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]


def test_a_model_is_named_where_there_are_several(service: Running) -> None:
    answer = service.post(json={"prompt": "1"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "name a model: raster, arpg")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"1e999"])
def test_bodies_that_are_no_request(service: Running, body: bytes) -> None:
    answer = service.post(content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["message"]


def test_bodies_that_are_too_large_are_not_read(service: Running) -> None:
    answer = service.post(json={"prompt": "1" * (1 << 18)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def endless() -> Any:
        for _ in range(64):
            yield b" " * 65536

    answer = service.post(content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_full_queue_says_when_to_come_again(service: Running) -> None:
    asked = {"model": "raster", "prompt": "1", "n": 4, "schedule": "zipar:2"}
    with ThreadPoolExecutor(4) as threads:
        with service.held("raster"):
            first = [threads.submit(service.post, json=asked) for _ in range(2)]
            until(lambda: service.served("raster").batcher.waiting == 8)
            refused = service.post(json=asked)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["message"].startswith("8 images are waiting and 8 may")
            patient = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=5)
            second = threads.submit(patient.images.generate, model="raster", prompt="1", n=4)
            time.sleep(0.1)
        assert [one.result(WAIT).status_code for one in first] == [200, 200]
        data = second.result(WAIT).data
        assert data is not None
        assert len(data) == 4


def test_a_deadline_that_passes(service: Running) -> None:
    with service.held("raster"), ThreadPoolExecutor(1) as threads:
        late = threads.submit(service.post, json={"model": "raster", "prompt": "1", "timeout": 0.05})
        answer = late.result(WAIT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "DeadlineExceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_images(service: Running, stream: bool) -> None:
    async def ask_and_hang_up() -> None:
        async with httpx.AsyncClient() as client:
            asked = {"model": "raster", "prompt": "1", "n": 3, "stream": stream}
            task = asyncio.create_task(client.post(f"{service.url}/v1/images/generations", json=asked))
            await asyncio.to_thread(until, lambda: service.served("raster").batcher.waiting == 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with service.held("raster"):
        asyncio.run(ask_and_hang_up())
        until(lambda: service.served("raster").batcher.waiting == 0)
        until(lambda: service.service.running == 0)
    answer = service.post(json={"model": "raster", "prompt": "5", "seed": 4}).json()
    image = expected(service, "raster", classes=[5], seeds=[4])[0]
    np.testing.assert_array_equal(pixels_of(answer["data"][0]["b64_json"]), image)


def test_an_error_of_a_stream_is_its_last_event(service: Running) -> None:
    with service.held("raster"), ThreadPoolExecutor(1) as threads:
        asked = {"model": "raster", "prompt": "1", "stream": True, "timeout": 0.05}
        late = threads.submit(service.post, json=asked)
        event, data = late.result(WAIT).text.strip().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "DeadlineExceeded"


def test_strangers_share_batches_and_get_their_own_pictures(service: Running) -> None:
    asked = [
        {"model": "raster", "prompt": str(index % 10), "seed": index, "schedule": "zipar:2", "guidance": 1 + index % 4}
        for index in range(8)
    ]
    with ThreadPoolExecutor(8) as threads:
        with service.held("raster"):
            before = counted(service, 'arforge_batch_images_count{model="raster"}')
            futures = [threads.submit(service.post, json=one) for one in asked]
            until(lambda: service.served("raster").batcher.waiting == 8)
        answers = [future.result(WAIT).json() for future in futures]
    assert (
        counted(service, 'arforge_batch_images_count{model="raster"}') - before == 3
    )  # the one that held, and two of 4
    for one, answer in zip(asked, answers, strict=True):
        image = expected(
            service,
            "raster",
            classes=[int(str(one["prompt"]))],
            seeds=[one["seed"]],
            schedule="zipar:2",
            guidance=one["guidance"],
        )[0]
        np.testing.assert_array_equal(pixels_of(answer["data"][0]["b64_json"]), image)


def test_a_failure_of_the_engine_is_no_clients_fault(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "generate", broken)
        answer = service.post(json={"model": "raster", "prompt": "1"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert service.post(json={"model": "raster", "prompt": "1"}).status_code == 200


def test_a_draining_service_takes_nothing_new(class_bundle: Path, serve: Any) -> None:
    own: Running = serve([class_bundle], Limits())
    with ThreadPoolExecutor(1) as threads:
        with own.held("raster"):
            running = threads.submit(own.post, json={"prompt": "2", "seed": 1})
            until(lambda: own.service.running == 1)
            own.service.draining = True
            refused = own.post(json={"prompt": "1"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert (own.get("/health/ready").status_code, own.get("/health/live").status_code) == (503, 200)
        assert running.result(WAIT).status_code == 200


def test_two_threads_of_one_client(service: Running) -> None:
    """Keep-alive connections that are used by turns."""
    with httpx.Client(timeout=WAIT) as client:
        results: list[int] = []

        def ask() -> None:
            for seed in range(4):
                body = {"model": "raster", "prompt": "1", "seed": seed, "schedule": "zipar:2"}
                results.append(client.post(f"{service.url}/v1/images/generations", json=body).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [200] * 8
