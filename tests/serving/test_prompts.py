"""Prompts in words over HTTP: pictures are the runner's, and what shows only as the text is read is said as clearly."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from http_service import WAIT, Running, pixels_of

from arforge.runner import Request
from arforge.serving.limits import Limits


def test_prompts_of_strangers_in_one_batch(words_bundle: Path, serve: Callable[..., Running]) -> None:
    own = serve([words_bundle], Limits(batch=4))
    runner = own.served("words").runner
    assert own.get("/v1/models/words").json()["arforge"]["takes"] == "prompt"
    prompts = ["a red heart", "a happy cat", "7"]
    wrong = {"prompt": "word " * 300}
    with ThreadPoolExecutor(4) as threads:
        sent = [{"prompt": prompt, "seed": seed, "guidance": 2.0} for seed, prompt in enumerate(prompts)]
        futures = [threads.submit(own.post, json=body) for body in [*sent, wrong]]
        answers = [future.result(WAIT) for future in futures]
    for seed, (prompt, answer) in enumerate(zip(prompts, answers[:3], strict=True)):
        images = runner.generate(Request(prompts=[prompt], seeds=[seed], guidance=2.0)).images
        assert images is not None
        np.testing.assert_array_equal(pixels_of(answer.json()["data"][0]["b64_json"]), images[0])
    assert answers[3].status_code == 400
    message = answers[3].json()["error"]["message"]
    assert "the model has room for 24: shorten it" in message
    cut = own.post(json={**wrong, "truncate": True, "captions": "raw", "seed": 2})
    images = runner.generate(Request(prompts=[wrong["prompt"]], seeds=[2], truncate=True, captions="raw")).images
    assert images is not None
    np.testing.assert_array_equal(pixels_of(cut.json()["data"][0]["b64_json"]), images[0])


def test_prompts_that_do_not_fit(words_bundle: Path, serve: Callable[..., Running]) -> None:
    own = serve([words_bundle], Limits())
    for asked, message in (
        ({"prompt": ""}, "empty"),
        ({"prompt": "a", "negative_prompt": "b"}, "knows no negative"),
        ({"prompt": "a", "captions": "shiny"}, "captions 'shiny' are unknown"),
    ):
        answer = own.post(json=asked)
        assert (answer.status_code, message in answer.json()["error"]["message"]) == (400, True), answer.text
