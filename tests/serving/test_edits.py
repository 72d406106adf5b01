"""/v1/images/edits: in- and outpainting by models of random order, pixel for pixel as `Runner.generate`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import openai
import pytest
from http_service import Running, pixels_of
from PIL import Image

from arforge.runner import Request
from arforge.runner.inpainting import known_tokens

HEIGHT, WIDTH = 8, 12


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clear(height: int, width: int, left: int) -> np.ndarray:
    """Opaque but for the columns from `left` on."""
    opacity = np.full((height, width), 255, np.uint8)
    opacity[:, left:] = 0
    return opacity


def expected(service: Running, image: bytes, mask: bytes | None, **asked: Any) -> np.ndarray:
    runner = service.served("arpg").runner
    with Image.open(io.BytesIO(image)) as opened:
        grid = opened.height // 2, opened.width // 2
    known = known_tokens(runner, image, mask, grid, clear_paints=True)
    images = runner.generate(Request(known=known, **asked)).images
    assert images is not None
    return images


def test_the_openai_client_paints_where_the_mask_is_clear(service: Running) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none")
    image = png(picture())
    mask = png(np.dstack([picture(), clear(HEIGHT, WIDTH, 4)]))
    answer = client.images.edit(
        model="arpg",
        image=("image.png", image),
        mask=("mask.png", mask),
        prompt="3",
        n=2,
        extra_body={"seed": 4, "schedule": "arpg:4", "guidance": 2.0},
    )
    images = expected(service, image, mask, classes=[3, 3], seeds=[4, 5], schedule="arpg:4", guidance=2.0)
    assert answer.data is not None
    for one, made in zip(answer.data, images, strict=True):
        assert one.b64_json is not None
        np.testing.assert_array_equal(pixels_of(one.b64_json), made)


def test_an_image_with_clear_margins_is_outpainted(service: Running) -> None:
    image = png(np.dstack([picture(8, 20), clear(8, 20, 12)]))
    form = {"model": "arpg", "prompt": "1", "seed": "7", "schedule": "arpg:4"}
    body = service.post("edits", data=form, files={"image": image}).json()
    made = expected(service, image, None, classes=[1], seeds=[7], schedule="arpg:4")[0]
    np.testing.assert_array_equal(pixels_of(body["data"][0]["b64_json"]), made)
    assert body["size"] == "20x8"


def test_an_opaque_mask_paints_where_it_is_light_and_a_stream_shows_it(service: Running) -> None:
    image, mask = png(picture()), png(255 - clear(HEIGHT, WIDTH, 6))
    form = {"model": "arpg", "prompt": "1", "seed": "7", "schedule": "arpg:6", "stream": "true", "partial_images": "2"}
    text = service.post("edits", data=form, files={"image": image, "mask": mask}).text
    events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert events == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


@pytest.mark.parametrize(
    ("form", "files", "message"),
    [
        ({}, {}, "send one file as image"),
        ({}, {"image": b"no image"}, "of 8 bytes: it is none of PNG"),
        ({}, {"image": png(picture())}, "has no transparent part"),
        ({}, {"image": png(picture(10, 13)), "mask": png(clear(10, 13, 2))}, "not a whole number of 2-pixel tokens"),
        ({}, {"image": png(picture(4, 4)), "mask": png(clear(4, 4, 2))}, "out of range: use the model's 4x6"),
        ({}, {"image": png(picture(100, 100))}, "the image has more than 4096 pixels"),
        ({}, {"image": png(picture()), "mask": png(picture(4, 4))}, "make them the same size"),
        ({}, {"image": png(picture()), "mask": png(np.zeros((8, 12), np.uint8))}, "leaves nothing to paint"),
        ({}, {"image": png(picture()), "mask": png(np.full((8, 12), 255, np.uint8))}, "keeps no token whole"),
        ({"size": "16x16"}, {"image": png(picture())}, "size 16x16: the image is 12x8"),
        ({"model": "raster"}, {"image": png(picture())}, "model raster cannot keep a part of an image"),
        ({"n": "x"}, {"image": png(picture())}, "n: Input should be a valid integer"),
        ({}, {"image": png(picture()), "other": b"1"}, "send one file as image"),
        ({"path": "/etc/passwd"}, {"image": png(picture())}, "path: Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    service: Running, form: dict[str, str], files: dict[str, bytes], message: str
) -> None:
    answer = service.post("edits", data={"model": "arpg", "prompt": "1", **form}, files=files or None)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_forms_that_are_none(service: Running) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"\0" * 1000):
        answer = service.post("edits", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    assert service.post("edits", json={"prompt": "1"}).status_code == 400
