from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import Decoder

from arforge.runner import Cancelled, EngineError, Runner
from arforge.runner.images import Pixels

CLASSES = [3, 1, 4, 1, 5]
SEEDS = [9, 2**64 - 1, 6, 5, 0]
SETTINGS = [
    {"guidance": 2.0},
    {"guidance": 1.0},
    {"guidance": 1.5, "temperature": 0.7, "top_k": 9},
    {"guidance": 3.0, "temperature": 1.3, "top_p": 0.8},
    {"guidance": 2.0, "top_k": 20, "top_p": 0.95},
]


class CountDown:
    """Set after it was looked at `looks` times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:3"])
def test_an_image_is_the_same_alone_and_in_any_batch_and_order(
    runner: Runner, schedule: str, settings: dict[str, Any]
) -> None:
    request = {"schedule": schedule, **settings}
    together = runner.generate(CLASSES, SEEDS, **request).tokens
    assert len(np.unique(together)) > 8
    for batch in (1, 2, 3):
        np.testing.assert_array_equal(runner.generate(CLASSES, SEEDS, batch=batch, **request).tokens, together)
    reverse = runner.generate(CLASSES[::-1], SEEDS[::-1], **request).tokens
    np.testing.assert_array_equal(reverse[::-1], together)
    np.testing.assert_array_equal(runner.generate(CLASSES, SEEDS, **request).tokens, together)


def test_seeds_default_to_the_place_of_the_image(runner: Runner) -> None:
    left_out = runner.generate([4, 4, 4]).tokens
    np.testing.assert_array_equal(left_out, runner.generate([4, 4, 4], [0, 1, 2]).tokens)
    assert (left_out[0] != left_out[1]).any()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sampled_tokens_are_the_inverse_distribution_of_the_published_filters(
    runner: Runner, decoder: Decoder, settings: dict[str, Any]
) -> None:
    """Every token, given those before it, against a plain sorted top-k and top-p over the reference's logits."""
    classes, seeds = [0, 2, 7, 9] * 4, list(range(100, 116))
    tokens = runner.generate(classes, seeds, schedule="ntp", **settings).tokens
    logits = oracle.teacher_forced(decoder, classes, tokens, settings["guidance"])
    filters = {key: value for key, value in settings.items() if key != "guidance"}
    expected = oracle.draw(oracle.probabilities(logits, **filters), oracle.uniforms(seeds, 64))
    np.testing.assert_array_equal(tokens, expected)


def test_first_tokens_follow_the_distribution_of_the_model(grouped_runner: Runner, grouped_decoder: Decoder) -> None:
    settings = {"temperature": 1.2, "top_k": 12}
    count = 2000
    found = grouped_runner.generate([5] * count, schedule="zipar:1", guidance=1.5, batch=500, **settings).tokens
    logits = oracle.teacher_forced(grouped_decoder, [5], found[:1], guidance=1.5)
    expected = oracle.probabilities(logits, **settings)[0, 0] * count
    drawn = np.bincount(found[:, 0], minlength=len(expected))
    likely = expected > 0
    assert drawn[~likely].sum() == 0
    assert likely.sum() == 12
    assert ((drawn - expected) ** 2 / np.maximum(expected, 1e-9))[likely].sum() < 31.3  # 11 degrees, p = 0.001


@pytest.mark.parametrize("schedule", ["ntp", "zipar:4"])
def test_top_k_of_one_is_greedy(runner: Runner, schedule: str) -> None:
    greedy = runner.generate(CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(runner.generate(CLASSES, SEEDS, schedule=schedule, top_k=1).tokens, greedy)
    cold = runner.generate(CLASSES, SEEDS, schedule=schedule, temperature=0.0).tokens
    np.testing.assert_array_equal(cold, greedy)


def test_guidance_one_runs_conditional_rows_alone(bundle: Path, decoder: Decoder) -> None:
    with Runner.open(bundle, threads=1) as own:
        tokens = own.generate(CLASSES, guidance=1.0, greedy=True).tokens
        assert own._engine.cache("key_cache_0").shape[0] == len(CLASSES)
        own.generate(CLASSES, guidance=1.5, greedy=True)
        assert own._engine.cache("key_cache_0").shape[0] == 2 * len(CLASSES)
    np.testing.assert_array_equal(tokens, oracle.next_token(decoder, CLASSES, guidance=1.0))


def test_settings_left_out_are_the_bundles(runner: Runner) -> None:
    sampler = runner.bundle.sampler
    given = runner.generate(
        CLASSES, guidance=sampler.guidance, temperature=sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p
    )
    np.testing.assert_array_equal(runner.generate(CLASSES).tokens, given.tokens)


def test_a_result_holds_tokens_images_and_steps(runner: Runner) -> None:
    result = runner.generate(CLASSES, schedule="zipar:2", batch=2)
    assert (result.tokens.shape, result.tokens.dtype) == ((5, 64), np.int64)
    assert 0 <= result.tokens.min() <= result.tokens.max() < 32
    assert result.images is not None
    assert (result.images.shape, result.images.dtype) == ((5, 16, 16, 3), np.uint8)
    assert result.steps == 2 * 8 + 6 * 2
    assert result.seconds > 0
    assert result.image_seconds > 0


def test_without_a_tokenizer_there_are_tokens_only(grouped_runner: Runner) -> None:
    result = grouped_runner.generate([0, 6])
    assert result.images is None
    assert result.tokens.shape == (2, 24)


def test_progress_counts_the_steps_of_all_batches(runner: Runner) -> None:
    calls: list[tuple[int, int]] = []
    runner.generate(CLASSES, schedule="zipar:2", batch=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 84) for done in range(1, 85)]


@pytest.mark.parametrize(("looks", "after"), [(0, 0), (3, 3), (28 + 5, 28 + 5)])
def test_cancelling_between_steps_leaves_the_runner_usable(runner: Runner, looks: int, after: int) -> None:
    expected = runner.generate(CLASSES, SEEDS, schedule="zipar:2").tokens
    done: list[int] = []
    with pytest.raises(Cancelled, match=f"cancelled after {after} of 56 steps"):
        runner.generate(
            CLASSES,
            SEEDS,
            schedule="zipar:2",
            batch=3,
            cancel=CountDown(looks),
            progress=lambda step, _: done.append(step),
        )
    assert len(done) == looks
    np.testing.assert_array_equal(runner.generate(CLASSES, SEEDS, schedule="zipar:2").tokens, expected)


def test_an_error_in_the_callers_progress_leaves_the_runner_usable(runner: Runner) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    expected = runner.generate([1], schedule="zipar:2").tokens
    with pytest.raises(RuntimeError, match="1 of 28"):
        runner.generate([1], schedule="zipar:2", progress=fail)
    np.testing.assert_array_equal(runner.generate([1], schedule="zipar:2").tokens, expected)


def test_an_event_that_is_set_cancels_at_once(runner: Runner) -> None:
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled, match="cancelled after 0 of 64 steps"):
        runner.generate([0], cancel=event)


def test_a_closed_runner_closes_again_and_generates_no_more(bundle: Path) -> None:
    opened = Runner.open(bundle, threads=1)
    opened.generate([0], schedule="zipar:1")
    opened.close()
    opened.close()
    for schedule in ("zipar:1", "ntp"):
        with pytest.raises(EngineError, match="the runner is closed: open it again"):
            opened.generate([0], schedule=schedule)


def test_threads_that_call_at_once_get_their_own_tokens(runner: Runner) -> None:
    requests = [
        {"classes": [index % 10] * (1 + index % 3), "schedule": schedule, "guidance": 1.0 + index % 2}
        for index, schedule in enumerate(["ntp", "zipar:2", "zipar:4", "zipar:2", "ntp", "zipar:5"] * 2)
    ]
    expected = [runner.generate(**request).tokens for request in requests]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        found[index] = runner.generate(**requests[index]).tokens

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(len(requests)))
    for index, tokens in found.items():
        np.testing.assert_array_equal(tokens, expected[index])


def test_two_runners_of_one_bundle_agree(bundle: Path, runner: Runner) -> None:
    with Runner.open(str(bundle), threads=2) as other:
        np.testing.assert_array_equal(other.generate(CLASSES).tokens, runner.generate(CLASSES).tokens)


def test_images_are_kept_left_out_or_handed_on_batch_by_batch(runner: Runner) -> None:
    request: dict[str, Any] = {"classes": [1, 2, 3], "seeds": [4, 5, 6], "schedule": "zipar:2", "batch": 2}
    kept = runner.generate(**request)
    assert kept.images is not None
    parts: list[np.ndarray] = []
    handed = runner.generate(**request, images=parts.append)
    left_out = runner.generate(**request, images=False)
    assert [len(part) for part in parts] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(parts), kept.images)
    assert handed.images is None
    assert left_out.images is None
    assert left_out.image_seconds == 0
    for result in (handed, left_out):
        np.testing.assert_array_equal(result.tokens, kept.tokens)


def test_images_are_held_once() -> None:
    pixels, batch = Pixels(64, keep=True), np.zeros((4, 64, 64, 3), np.uint8)
    tracemalloc.start()
    for number in range(16):
        pixels.add(np.full_like(batch, number))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.kept is not None
    assert peak < pixels.kept.nbytes + 3 * batch.nbytes
    np.testing.assert_array_equal(pixels.kept[:, 0, 0, 0], np.repeat(np.arange(16), 4))
