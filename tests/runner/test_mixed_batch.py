"""A batch of images with settings of their own: each gets what it gets alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arforge.runner import Request, RequestError, Runner
from arforge.runner.request import Sampling

CLASSES, SEEDS = (3, 1, 4, 1, 5, 9, 2), (9, 2**64 - 1, 6, 5, 0, 7, 7)
SETTINGS: dict[str, tuple[Any, ...]] = {
    "guidance": (1, 2.0, 1.5, 1, 3.0, 2.0, 4),
    "temperature": (1.0, 0.7, 1, 1.3, 1.0, 1.0, 0),
    "top_k": (0, 0, 9, 5, 0, 3, 0),
    "top_p": (1, 0.8, 1.0, 1.0, 0.95, 0.5, 1.0),
    "greedy": (False, False, False, False, False, True, False),
}
MIXED = Request(CLASSES, SEEDS, **SETTINGS)


def alone(runner: Runner, request: Request, image: int) -> np.ndarray:
    settings = {name: values[image] for name, values in SETTINGS.items()}
    one = replace(request, classes=[CLASSES[image]], seeds=[SEEDS[image]], **settings)
    return runner.generate(one).tokens[0]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("runner", "ntp"),
        ("runner", "zipar:2"),
        ("runner", "zipar:4,cfg-interval=8"),
        ("par_runner", "par:4"),
        ("arpg_runner", "arpg:5"),
    ],
)
def test_each_image_gets_the_tokens_that_it_gets_alone(
    name: str, schedule: str, request: pytest.FixtureRequest
) -> None:
    runner: Runner = request.getfixturevalue(name)
    mixed = replace(MIXED, schedule=schedule)
    together = runner.generate(mixed).tokens
    for image in range(len(CLASSES)):
        np.testing.assert_array_equal(together[image], alone(runner, mixed, image), err_msg=f"image {image}")
    for batch in (2, 3):
        np.testing.assert_array_equal(runner.generate(replace(mixed, batch=batch)).tokens, together)


def test_settings_of_an_image_are_its_own(runner: Runner) -> None:
    """Counter-check: with another image's settings these images come out differently."""
    together = runner.generate(MIXED).tokens
    for name, values in SETTINGS.items():
        turned = runner.generate(replace(MIXED, **{name: values[::-1]})).tokens
        assert (turned != together).any(axis=1).sum() >= 2, name


def test_unguided_images_beside_guided_ones_need_no_unconditional_row(bundle: Path, runner: Runner) -> None:
    with Runner.open(bundle, threads=1) as own:
        tokens = own.generate([3, 1, 4], guidance=[1, 1, 2], batch=2, greedy=True).tokens
        assert own._live_engine().cache("key_cache_0").shape[0] == 2  # the last part's: one guided image
    expected = [runner.generate([label], guidance=scale, greedy=True).tokens[0] for label, scale in ((3, 1), (4, 2))]
    np.testing.assert_array_equal(tokens[[0, 2]], expected)


def test_known_tokens_and_mixed_settings_go_together(arpg_runner: Runner) -> None:
    known = np.where(np.arange(24).reshape(4, 6) % 4 == 1, -1, np.arange(24).reshape(4, 6))
    mixed = replace(MIXED, schedule="arpg:4", known=known)
    together = arpg_runner.generate(mixed).tokens
    np.testing.assert_array_equal(together[2], alone(arpg_runner, mixed, 2))
    assert (together[:, (known >= 0).ravel()] == known[known >= 0]).all()


def test_a_request_is_what_the_keywords_say(runner: Runner) -> None:
    words: dict[str, Any] = {"schedule": "zipar:2", "guidance": 1.5, "temperature": 0.8, "top_k": 9, "batch": 2}
    expected = runner.generate([3, 1, 4], [5, 6, 7], **words)
    for found in (
        runner.generate(Request([3, 1, 4], [5, 6, 7], **words)),
        runner.generate(classes=[3, 1, 4], seeds=[5, 6, 7], **words),
        runner.generate([3, 1, 4], [5, 6, 7], "zipar:2", [1.5] * 3, np.full(3, 0.8), [9, 9, 9], batch=2),
    ):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    calls: list[int] = []
    runner.generate(Request([1], schedule="zipar:2"), progress=lambda done, steps: calls.append(steps))
    assert calls == [28] * 28
    greedy = runner.generate([3, 1], greedy=[True, False], temperature=[1.0, 0.0]).tokens
    np.testing.assert_array_equal(greedy, runner.generate([3, 1], greedy=True).tokens)


def test_arguments_beside_a_request_are_refused(runner: Runner) -> None:
    with pytest.raises(RequestError, match="a Request says all of it: give no other arguments beside it"):
        runner.generate(MIXED, guidance=2.0)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": [1.0, 2.0]}, "2 values of guidance for 3 images: give one for all, or one an image"),
        ({"top_k": []}, "0 values of top-k for 3 images"),
        ({"greedy": [True]}, "1 values of greedy for 3 images"),
        ({"temperature": [1, 1, -2]}, r"temperature -2 is out of range: use 0 \(greedy\) to 1000"),
        ({"temperature": np.ones((3, 3))}, r"temperature .* is not a number"),
        ({"top_p": [1.0, 0.5, 0.0]}, "top-p 0.0 is out of range"),
        ({"top_k": [1, 2, 3.5]}, "top-k 3.5 is not a whole number"),
        ({"guidance": "2"}, "guidance '2' is not a number: use 1"),
        ({"guidance": 10**400}, "guidance 1000.* is out of range"),
        ({"top_p": [1.0, None, 1.0]}, "top-p None is not a number"),
        ({"classes": 5}, "classes 5 are no list"),
        ({"classes": "123"}, "classes '123' are no list"),
        ({"seeds": 7}, "seeds 7 are no list"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(runner: Runner, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        runner.generate(**{"classes": [1, 2, 3], **arguments})


def test_sampling_is_checked_where_it_is_made() -> None:
    assert Sampling(2.0, 1.0, 0, 1.0).guidance == 2.0
    with pytest.raises(RequestError, match="top-p 2 is out of range"):
        Sampling(2.0, 1.0, 0, 2)
