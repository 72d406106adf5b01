"""Strangers' requests decoded together in C++: each gets what Python gives it alone, its own failure and time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Answer, Batcher, Failure
from tiny import TEXT_CONFIG
from tiny_ids import prompt_of

from arforge.runner import Runner

WAIT = 60


@pytest.fixture(scope="module")
def ours(library: Any, bundle: Path) -> Iterator[cpp_abi.Runner]:
    runner = cpp_abi.Runner(library, bundle, threads=1)
    yield runner
    runner.close()


@pytest.fixture
def batcher(ours: cpp_abi.Runner) -> Iterator[Batcher]:
    with Batcher(ours, batch=4, waiting=16) as opened:
        yield opened


@contextmanager
def held(batcher: Batcher, **asked: Any) -> Iterator[Answer]:
    """The engine is busy with this request until the block ends, so that what is submitted there waits."""
    begun, go_on = threading.Event(), threading.Event()

    def progress(*_: int) -> bool:
        begun.set()
        return not go_on.wait(WAIT)

    answer = batcher.submit(**(asked or {"classes": [0], "schedule": "zipar:2"}), progress=progress)
    assert begun.wait(WAIT)
    try:
        yield answer
    finally:
        go_on.set()


def equal(found: cpp_abi.Result, runner: Runner, **asked: Any) -> None:
    expected = runner.generate(**asked)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert (found.images is None) == (expected.images is None)
    if expected.images is not None:
        np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert (found.steps, found.grid) == (expected.steps, expected.grid)


def failure(answer: Answer) -> tuple[int, str]:
    assert answer.wait(WAIT)
    with pytest.raises(Failure) as refused:
        answer.result()
    return refused.value.status, refused.value.message


def test_each_request_gets_what_it_gets_alone(runner: Runner, batcher: Batcher) -> None:
    requests: list[dict[str, Any]] = [
        {"classes": [1], "seeds": [5], "schedule": "zipar:2", "guidance": 2.0},
        {"classes": [2, 3], "seeds": [7, 8], "schedule": "zipar:2", "guidance": [1.0, 4.0], "temperature": 0.7},
        {"classes": [4], "schedule": "ntp", "top_k": 3},
        {"classes": [5], "schedule": "zipar:2", "greedy": True},
        {"classes": [6], "schedule": "zipar:02", "top_p": 0.5},
        {"classes": [7], "schedule": "jacobi:4"},
        {"classes": [8]},
    ]
    order: list[int] = []
    with held(batcher):
        answers = [
            batcher.submit(**asked, progress=lambda done, steps, place=place: order.append(place) and False)
            for place, asked in enumerate(requests)
        ]
    for asked, answer in zip(requests, answers, strict=True):
        equal(answer.result(), runner, **asked)
        equal(answer.result(), runner, **asked)  # again
    turns = [place for index, place in enumerate(order) if place not in order[:index]]
    # zipar:2 up to 4 images, then ntp (the default too), the last of zipar:2, jacobi: in order of arrival
    assert turns == [0, 1, 3, 2, 6, 4, 5]
    together = [place for place in order if place in (0, 1, 3)]
    assert together[:6] == [0, 1, 3, 0, 1, 3]  # step by step


def test_a_request_larger_than_a_batch_shares_its_last_one(runner: Runner, batcher: Batcher) -> None:
    large: dict[str, Any] = {"classes": list(range(6)), "schedule": "zipar:2"}
    small: dict[str, Any] = {"classes": [9, 9], "seeds": [1, 2], "schedule": "zipar:2"}
    seen: list[tuple[int, int, int]] = []

    def show(partial: cpp_abi.Partial) -> None:
        facts = partial.facts
        seen.append((facts.first, facts.images, facts.done))

    with held(batcher):
        answers = batcher.submit(**large, preview=show), batcher.submit(**small)
    equal(answers[0].result(), runner, **large)
    equal(answers[1].result(), runner, **small)
    steps = answers[0].result().steps
    assert seen == [(0, 4, step + 1) for step in range(steps)] + [(4, 2, step + 1) for step in range(steps)]


def test_prompts_of_unequal_length_whose_numbers_are_gone(library: Any, ids_bundle: Path) -> None:
    ids = [prompt_of(6, seed=1), prompt_of(11, seed=2), prompt_of(8, seed=3)]
    requests: list[dict[str, Any]] = [
        {"ids": [ids[0]], "guidance": 2.0},
        {"ids": [ids[1], ids[2]], "negative_ids": ids[0], "guidance": 2.0},
        {"ids": [ids[2]], "unconditional": "image", "guidance": 3.0},
        {"ids": [ids[1]], "guidance": 1.0},
        {"ids": [ids[1], ids[2]], "negative_ids": [ids[2], ids[0]], "guidance": 3.0},
    ]
    ours = cpp_abi.Runner(library, ids_bundle, threads=1)
    with Batcher(ours) as batcher, Runner.open(ids_bundle, threads=1) as runner:
        with held(batcher, ids=[ids[0]]):
            answers = [batcher.submit(**asked) for asked in requests]
            gc.collect()
            rubbish = [np.full(11, 9) for _ in range(1000)]
        for asked, answer in zip(requests, answers, strict=True):
            equal(answer.result(), runner, **asked)
        assert len(rubbish) == 1000
    ours.close()


def test_features_whose_numbers_are_gone(library: Any, text_bundle: Path) -> None:
    random = np.random.default_rng(0)
    features = [random.standard_normal((3 + n, TEXT_CONFIG.caption_dim), np.float32) for n in range(3)]
    ours = cpp_abi.Runner(library, text_bundle, threads=1)
    with Batcher(ours) as batcher, Runner.open(text_bundle, threads=1) as runner:
        with held(batcher, features=features[:1]):
            answers = [batcher.submit(features=[one.copy()], guidance=2.0) for one in features]
            gc.collect()
        for one, answer in zip(features, answers, strict=True):
            equal(answer.result(), runner, features=[one], guidance=2.0)
    ours.close()


def test_known_cells_are_decoded_with_their_like(library: Any, arpg_bundle: Path) -> None:
    left, right = np.full((4, 6), -1), np.full((4, 6), -1)
    left[:, :3], right[:, 3:] = 5, 6
    requests: list[dict[str, Any]] = [
        {"classes": [1], "known": left},
        {"classes": [2], "known": right},
        {"classes": [3, 4], "known": np.stack([left + (left >= 0), left]), "guidance": 2.0},
        {"classes": [4]},
    ]
    ours = cpp_abi.Runner(library, arpg_bundle, threads=1)
    order: list[int] = []
    with Batcher(ours) as batcher, Runner.open(arpg_bundle, threads=1) as runner:
        with held(batcher, classes=[0], schedule="arpg:4"):
            answers = [
                batcher.submit(**asked, schedule="arpg:4", progress=lambda *_, at=at: order.append(at) and False)
                for at, asked in enumerate(requests)
            ]
        for asked, answer in zip(requests, answers, strict=True):
            equal(answer.result(), runner, **asked, schedule="arpg:4")
    ours.close()
    assert [place for index, place in enumerate(order) if place not in order[:index]] == [0, 2, 1, 3]
    assert order[:4] == [0, 2, 0, 2]  # step by step


def test_a_full_queue_refuses_at_once(batcher: Batcher) -> None:
    asked: dict[str, Any] = {"classes": [1, 2, 3], "schedule": "zipar:2"}
    with held(batcher):
        kept = [batcher.submit(**asked) for _ in range(5)]
        with pytest.raises(Failure, match="15 images are waiting and 16 may: try again when some are done") as refused:
            batcher.submit([1, 2])
        assert refused.value.status == STATUS["queue_full"]
        assert kept[0].cancel()
        assert not kept[0].cancel()
        kept.append(batcher.submit([1, 2], schedule="zipar:2"))
    assert [len(answer.result().tokens) for answer in kept[1:]] == [3, 3, 3, 3, 2]
    assert failure(kept[0]) == (STATUS["cancelled"], "the request was cancelled")
    with pytest.raises(Failure, match="17 images are more than the 16 that may wait: ask for fewer"):
        batcher.submit([1] * 17)


def test_what_does_not_fit_is_refused_before_it_waits(ours: cpp_abi.Runner, batcher: Batcher, library: Any) -> None:
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"classes": [99]}, "request", "class 99 is out of range"),
        ({}, "request", "no classes given"),
        ({"classes": [1], "guidance": -1.0}, "request", "guidance -1 is out of range"),
        ({"classes": [1], "schedule": "arpg:4"}, "schedule", "order"),
        ({"classes": [1], "schedule": "zipper"}, "schedule", "unknown schedule"),
        ({"classes": [1], "known": np.zeros((8, 8), np.int64)}, "request", "nothing to decide"),
        ({"classes": [1], "timeout": -1}, "request", "timeout -1 is out of range: use seconds above 0"),
        ({"classes": [1], "timeout": float("nan")}, "request", "is out of range: use seconds above 0"),
    ]
    for asked, status, message in wrong:
        with pytest.raises(Failure, match=message) as refused:
            batcher.submit(**asked)
        assert refused.value.status == STATUS[status]
    for numbers in ({"batch": 0}, {"waiting": 0}, {"batch": 2**64 - 1}):
        with pytest.raises(Failure, match="is out of range: use 1 to"):
            Batcher(ours, **numbers)
    with pytest.raises(Failure, match="answer is NULL"):
        ours.check(library.arforge_answer_result(None, cpp_abi.ctypes.byref(cpp_abi.c_void_p())))


def test_what_fails_only_later_fails_alone(library: Any, ids_bundle: Path) -> None:
    prompts = [prompt_of(6, seed=index) for index in range(5)]
    prompts[2] = np.full(6, 10**6)  # no id of the model's
    ours = cpp_abi.Runner(library, ids_bundle, threads=1)
    with Batcher(ours) as batcher, Runner.open(ids_bundle, threads=1) as runner:
        with held(batcher, ids=[prompts[0]]):
            answers = [batcher.submit(ids=[one], guidance=2.0) for one in prompts]
        status, message = failure(answers[2])
        assert status == STATUS["request"]
        assert "the ids: prompt 0 holds 1000000, the model's ids are" in message
        for index in (0, 1, 3, 4):
            equal(answers[index].result(), runner, ids=[prompts[index]], guidance=2.0)
    ours.close()


def test_a_cancelled_request_leaves_the_others(runner: Runner, batcher: Batcher) -> None:
    answers: list[Answer] = []
    go_on = threading.Event()

    def cancel_first(done: int, _: int) -> bool:
        go_on.wait(WAIT)
        return done == 3 and not answers[0].cancel()

    with held(batcher):
        answers.append(batcher.submit([1], schedule="zipar:2", progress=cancel_first))
        answers.append(batcher.submit([4], schedule="zipar:2"))
        answers.append(batcher.submit([5], schedule="zipar:2", progress=lambda done, _: done == 2))
        go_on.set()
    assert failure(answers[0]) == (STATUS["cancelled"], "the request was cancelled")
    assert failure(answers[2]) == (STATUS["cancelled"], "cancelled after 2 of 28 steps")
    equal(answers[1].result(), runner, classes=[4], schedule="zipar:2")


def test_a_batch_that_nobody_waits_for_stops(runner: Runner, batcher: Batcher) -> None:
    steps: list[int] = []
    answers: list[Answer] = []
    submitted = threading.Event()

    def progress(done: int, _: int) -> bool:
        submitted.wait(WAIT)
        steps.append(done)
        return done == 5 and not answers[0].cancel()

    answers.append(batcher.submit([1, 2], schedule="ntp", progress=progress))
    submitted.set()
    assert failure(answers[0])[0] == STATUS["cancelled"]
    equal(batcher.submit([3]).result(), runner, classes=[3])
    assert steps == [1, 2, 3, 4, 5]


def test_deadlines_of_waiting_and_of_running_requests(runner: Runner, batcher: Batcher) -> None:
    with held(batcher) as first:
        late = batcher.submit([1], schedule="zipar:2", timeout=0.01)
        # while the engine is busy, in the middle of a step
        message = "the images were not done after 0.01 s: ask for fewer, or wait longer"
        assert failure(late) == (STATUS["deadline_exceeded"], message)
        assert not first.wait(0)
        assert not late.cancel()
    first.result()
    done: list[int] = []

    def slow(step: int, _: int) -> bool:
        done.append(step)
        time.sleep(0.02)
        return False

    running = batcher.submit([1], schedule="ntp", timeout=0.1, progress=slow)
    assert failure(running)[0] == STATUS["deadline_exceeded"]
    equal(batcher.submit([3], timeout=WAIT).result(), runner, classes=[3])
    assert len(done) < 64


def test_previews_of_one_request_in_a_batch(runner: Runner, batcher: Batcher) -> None:
    seen: list[tuple[int, int, np.ndarray, np.ndarray]] = []

    def show(partial: cpp_abi.Partial) -> None:
        seen.append((partial.facts.first, partial.facts.done, partial.tokens(), partial.pixels("grey")))

    asked: dict[str, Any] = {"classes": [3, 4], "seeds": [1, 2], "schedule": "zipar:2"}
    with held(batcher):
        batcher.submit([9], schedule="zipar:2")
        answer = batcher.submit(**asked, preview=show)
    result = answer.result()
    equal(result, runner, **asked)
    assert [(first, done) for first, done, _, _ in seen] == [(0, step + 1) for step in range(28)]
    for _, _, tokens, _ in seen:
        np.testing.assert_array_equal(tokens[tokens >= 0], result.tokens[tokens >= 0])
    np.testing.assert_array_equal(seen[-1][3], result.images)


def test_closing_answers_all(runner: Runner, ours: cpp_abi.Runner) -> None:
    with Batcher(ours, batch=1) as batcher:
        answers = [batcher.submit([label], schedule="zipar:2") for label in range(4)]
    for label, answer in enumerate(answers):
        assert answer.wait(0)
        equal(answer.result(), runner, classes=[label], schedule="zipar:2")


def test_many_threads_at_once(runner: Runner, ours: cpp_abi.Runner) -> None:
    requests: list[dict[str, Any]] = [
        {"classes": [n % 10], "seeds": [n], "schedule": ("zipar:2", "zipar:4")[n % 2], "guidance": 1.0 + n % 3}
        for n in range(48)
    ]
    found: dict[int, cpp_abi.Result] = {}
    with Batcher(ours, batch=8, waiting=64) as batcher:

        def ask(first: int) -> None:
            for index in range(first, len(requests), 8):
                found[index] = batcher.submit(**requests[index]).result()

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 48
    for index, result in found.items():
        equal(result, runner, **requests[index])
