"""Strangers' requests decoded together: each gets what it gets alone, its own failure, and its own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_engine import WAIT, held
from tiny_ids import prompt_of

from arforge.runner import EngineError, Request, RequestError, Result, Runner, ScheduleError
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.batcher import Batch, Batcher
from arforge.runner.errors import DeadlineExceeded, NumericsError, QueueFull
from arforge.runner.preview import Partial


@pytest.fixture
def batches() -> list[Batch]:
    return []


@pytest.fixture
def batcher(runner: Runner, batches: list[Batch]) -> Iterator[Batcher]:
    with Batcher(runner, batch=4, waiting=16, observe=batches.append) as opened:
        yield opened


def equal(result: Result, expected: Result) -> None:
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    assert result.images is not None
    assert expected.images is not None
    np.testing.assert_array_equal(result.images, expected.images)
    np.testing.assert_array_equal(result.passes, expected.passes)
    assert (result.steps, result.grid) == (expected.steps, expected.grid)


def test_each_request_gets_what_it_gets_alone(runner: Runner, batcher: Batcher, batches: list[Batch]) -> None:
    requests = [
        Request([1], seeds=[5], schedule="zipar:2", guidance=2.0),
        Request([2, 3], seeds=[7, 8], schedule="zipar:2", guidance=[1.0, 4.0], temperature=0.7),
        Request([4], schedule="ntp", top_k=3),
        Request([5], schedule="zipar:2", greedy=True),
        Request([6], schedule=" zipar:2 ", top_p=0.5),
        Request([7], schedule="jacobi:4"),
        Request([8]),
    ]
    with held(batcher):
        futures = [batcher.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        equal(future.result(WAIT), runner.generate(request))
    batcher.close()
    # zipar:2 up to 4 images, then ntp (the default too), the last of zipar:2, jacobi: in order of arrival
    assert [batch.images for batch in batches] == [1, 4, 2, 1, 1]
    assert all(seconds >= 0 for batch in batches for seconds in batch.waited)


def test_a_request_larger_than_a_batch_shares_its_last_one(
    runner: Runner, batcher: Batcher, batches: list[Batch]
) -> None:
    large, small = Request(list(range(6)), schedule="zipar:2"), Request([9, 9], seeds=[1, 2], schedule="zipar:2")
    with held(batcher):
        futures = batcher.submit(large), batcher.submit(small)
    equal(futures[0].result(WAIT), runner.generate(large))
    equal(futures[1].result(WAIT), runner.generate(small))
    batcher.close()
    assert [batch.images for batch in batches] == [1, 4, 4]


def test_prompts_of_unequal_length_and_settings_of_their_own(ids_runner: Runner) -> None:
    ids = [prompt_of(6, seed=1), prompt_of(11, seed=2), prompt_of(8, seed=3)]
    requests = [
        Request(ids=[ids[0]], guidance=2.0),
        Request(ids=[ids[1], ids[2]], negative_ids=ids[0], guidance=2.0),
        Request(ids=[ids[2]], unconditional="image", guidance=3.0),
        Request(ids=[ids[1]], guidance=1.0),
    ]
    batches: list[Batch] = []
    with Batcher(ids_runner, batch=8, observe=batches.append) as batcher:
        with held(batcher, Request(ids=[ids[0]])):
            futures = [batcher.submit(request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            np.testing.assert_array_equal(future.result(WAIT).tokens, ids_runner.generate(request).tokens)
    assert [batch.images for batch in batches] == [1, 2, 2, 1]


def test_known_cells_are_decoded_with_their_like(arpg_runner: Runner) -> None:
    left, right = np.full((4, 6), -1), np.full((4, 6), -1)
    left[:, :3], right[:, 3:] = 5, 6
    requests = [
        Request([1], known=left, schedule="arpg:4"),
        Request([2], known=right, schedule="arpg:4"),
        Request([3], known=left + (left >= 0), schedule="arpg:4", guidance=2.0),
        Request([4], schedule="arpg:4"),
    ]
    batches: list[Batch] = []
    with Batcher(arpg_runner, observe=batches.append) as batcher:
        with held(batcher, Request([0], schedule="arpg:4")):
            futures = [batcher.submit(request) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            equal(future.result(WAIT), arpg_runner.generate(request))
    assert [batch.images for batch in batches] == [1, 2, 1, 1]


def test_a_full_queue_refuses_at_once(batcher: Batcher) -> None:
    with held(batcher):
        kept = [batcher.submit(Request([1, 2, 3], schedule="zipar:2")) for _ in range(5)]
        with pytest.raises(QueueFull, match="15 images are waiting and 16 may: try again when some are done"):
            batcher.submit(Request([1, 2], schedule="zipar:2"))
        assert batcher.waiting == 15
        assert kept[0].cancel()
        assert batcher.waiting == 12
        kept.append(batcher.submit(Request([1, 2], schedule="zipar:2")))
    assert [len(future.result(WAIT).tokens) for future in kept[1:]] == [3, 3, 3, 3, 2]
    with pytest.raises(QueueFull, match="17 images are more than the 16 that may wait: ask for fewer"):
        batcher.submit(Request([1] * 17))


def test_what_does_not_fit_is_refused_before_it_waits(batcher: Batcher) -> None:
    wrong: list[tuple[Request, type[Exception], str]] = [
        (Request([99]), RequestError, "class 99 is out of range"),
        (Request(), RequestError, "nothing is asked for"),
        (Request([1], guidance=-1), RequestError, "guidance -1 is out of range"),
        (Request([1], schedule="arpg:4"), ScheduleError, "decodes in random order"),
        (Request([1], schedule="zipper"), ScheduleError, "unknown schedule"),
        (Request([1], seeds=[1, 2]), RequestError, "2 seeds for 1 images"),
        (Request([1], known=np.zeros((8, 8), np.int64)), RequestError, "nothing to decide"),
        (Request([1, 2], negative=["a", "b", "c"]), RequestError, "3 of negative for 2 images"),
    ]
    for request, kind, message in wrong:
        with pytest.raises(kind, match=message):
            batcher.submit(request)
    with pytest.raises(RequestError, match="timeout 0 is out of range"):
        batcher.submit(Request([1]), timeout=0)
    assert batcher.waiting == 0


def test_what_fails_only_later_fails_alone(ids_runner: Runner) -> None:
    prompts = [prompt_of(6, seed=index) for index in range(5)]
    prompts[2] = np.full(6, 10**6)  # no id of the model's
    requests = [Request(ids=[one], guidance=2.0) for one in prompts]
    with Batcher(ids_runner) as batcher:
        with held(batcher, Request(ids=[prompts[0]])):
            futures = [batcher.submit(request) for request in requests]
        with pytest.raises(RequestError):
            futures[2].result(WAIT)
        for index in (0, 1, 3, 4):
            expected = ids_runner.generate(requests[index]).tokens
            np.testing.assert_array_equal(futures[index].result(WAIT).tokens, expected)


def test_an_image_that_breaks_the_numbers_fails_alone(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    generate: Callable[..., Result] = Runner.generate

    def poisoned(self: Runner, request: Request, **rest: Any) -> Result:
        assert request.classes is not None
        if 5 in request.classes:
            raise NumericsError("logits are non-finite")
        return generate(self, request, **rest)

    with Batcher(runner) as batcher:
        with held(batcher):
            monkeypatch.setattr(Runner, "generate", poisoned)
            futures = [batcher.submit(Request([label, 1], schedule="zipar:2")) for label in (3, 5, 7)]
        with pytest.raises(NumericsError):
            futures[1].result(WAIT)
        for index, label in ((0, 3), (2, 7)):
            expected = runner.generate(Request([label, 1], schedule="zipar:2"))
            equal(futures[index].result(WAIT), expected)


def test_a_cancelled_request_leaves_the_others(runner: Runner, batcher: Batcher) -> None:
    go_on, futures = threading.Event(), []

    def cancel_first(done: int, _: int) -> None:
        go_on.wait(WAIT)
        if done == 3:
            assert futures[0].cancel()

    request = Request([4], schedule="zipar:2")
    with held(batcher):
        futures += [batcher.submit(Request([1], schedule="zipar:2"), progress=cancel_first), batcher.submit(request)]
        go_on.set()
    with pytest.raises(CancelledError):
        futures[0].result(WAIT)
    equal(futures[1].result(WAIT), runner.generate(request))


def test_a_batch_that_nobody_waits_for_stops(runner: Runner, batches: list[Batch]) -> None:
    with Batcher(runner, batch=4, observe=batches.append) as batcher:
        steps: list[int] = []
        future: Future[Result] = batcher.submit(
            Request([1, 2], schedule="ntp"),
            progress=lambda done, of: (steps.append(done), done == 5 and future.cancel(), None)[-1],
        )
        with pytest.raises(CancelledError):
            future.result(WAIT)
        equal(batcher.submit(Request([3])).result(WAIT), runner.generate(Request([3])))
    assert steps == [1, 2, 3, 4, 5]
    assert [batch.result is None for batch in batches] == [True, False]


def test_deadlines_of_waiting_and_of_running_requests(runner: Runner, batcher: Batcher) -> None:
    with held(batcher) as first:
        late = batcher.submit(Request([1], schedule="zipar:2"), timeout=0.01)
        with pytest.raises(DeadlineExceeded, match=r"not done after 0\.01 s: ask for fewer, or wait longer"):
            late.result(WAIT)  # though the engine is busy
    first.result(WAIT)
    with held(batcher, timeout=0.05) as running, pytest.raises(DeadlineExceeded):
        running.result(WAIT)
    done: list[int] = []

    def slow(step: int, _: int) -> None:
        done.append(step)
        time.sleep(0.02)

    running = batcher.submit(Request([1], schedule="ntp"), timeout=0.1, progress=slow)
    with pytest.raises(DeadlineExceeded):
        running.result(WAIT)
    equal(batcher.submit(Request([3])).result(WAIT), runner.generate(Request([3])))
    assert len(done) < 64


def test_previews_of_one_request_in_a_batch(runner: Runner, batcher: Batcher) -> None:
    request, seen = Request([3, 4], seeds=[1, 2], schedule="zipar:2"), []

    def show(partial: Partial) -> None:
        seen.append((partial.first, partial.done, partial.tokens()))

    with held(batcher):
        batcher.submit(Request([9], schedule="zipar:2"))
        future = batcher.submit(request, preview=show)
    tokens = future.result(WAIT).tokens
    np.testing.assert_array_equal(tokens, runner.generate(request).tokens)
    assert [(first, done) for first, done, _ in seen] == [(0, step + 1) for step in range(len(seen))]
    for _, _, partial in seen:
        np.testing.assert_array_equal(partial[partial >= 0], tokens[partial >= 0])


def test_previews_of_an_engine_that_decodes_fewer_at_a_time(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, batches: list[Batch]
) -> None:
    monkeypatch.setattr(OnnxRuntimeEngine, "largest_batch", 2)
    seen: list[tuple[int, int]] = []

    def show(partial: Partial) -> None:
        tokens = partial.tokens()
        assert len(tokens) == len(partial.pixels()) == partial.count
        seen.append((partial.first, partial.count))

    with Runner.open(bundle, threads=1) as own, Batcher(own, observe=batches.append) as batcher:
        with batcher.together():
            first = batcher.submit(Request([9], schedule="zipar:2"))
            future = batcher.submit(Request([3, 4, 5], seeds=[1, 2, 3], schedule="zipar:2"), preview=show)
        equal(first.result(WAIT), own.generate([9], schedule="zipar:2"))
        result = future.result(WAIT)
    assert len(result.tokens) == 3
    assert [batch.images for batch in batches] == [4]
    assert list(dict.fromkeys(seen)) == [(0, 1), (1, 2)]


def test_what_is_submitted_together_is_one_batch(runner: Runner, batcher: Batcher, batches: list[Batch]) -> None:
    requests = [Request([label], schedule="zipar:2") for label in range(4)]
    with batcher.together():
        futures = [batcher.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        equal(future.result(WAIT), runner.generate(request))
    batcher.close()
    assert [batch.images for batch in batches] == [4]


def test_a_hook_that_raises_is_its_own_requests_failure(runner: Runner, batcher: Batcher) -> None:
    def broken(_: Partial) -> None:
        raise ValueError("of the hook")

    with held(batcher):
        futures = [batcher.submit(Request([1], schedule="zipar:2"), preview=broken)]
        futures += [batcher.submit(Request([2], schedule="zipar:2"))]
    with pytest.raises(ValueError, match="of the hook"):
        futures[0].result(WAIT)
    equal(futures[1].result(WAIT), runner.generate(Request([2], schedule="zipar:2")))


def test_closing_answers_all_or_cancels_what_has_not_begun(runner: Runner) -> None:
    batcher = Batcher(runner, batch=1)
    with held(batcher):
        waiting = batcher.submit(Request([1]))
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while batcher.alive:
            time.sleep(0.001)
        with pytest.raises(EngineError, match="the batcher is closed: make another one"):
            batcher.submit(Request([2]))
    equal(waiting.result(WAIT), runner.generate(Request([1])))
    closing.join(WAIT)
    batcher = Batcher(runner, batch=1)
    with held(batcher) as running:
        waiting = batcher.submit(Request([1]))
        closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
        closing.start()
        with pytest.raises(CancelledError):
            waiting.result(WAIT)
    assert running.result(WAIT).tokens.shape == (1, 64)
    closing.join(WAIT)
    batcher.close()


def test_a_request_from_a_done_callback(runner: Runner, batcher: Batcher) -> None:
    followed: Future[Future[Result]] = Future()
    first = batcher.submit(Request([1], schedule="zipar:2"))
    first.add_done_callback(lambda _: followed.set_result(batcher.submit(Request([2], schedule="zipar:2"))))
    equal(followed.result(WAIT).result(WAIT), runner.generate(Request([2], schedule="zipar:2")))


def test_many_threads_at_once(runner: Runner) -> None:
    requests = [
        Request([index % 10], seeds=[index], schedule=("zipar:2", "zipar:4")[index % 2], guidance=1 + index % 3)
        for index in range(48)
    ]
    expected = [runner.generate(request) for request in requests]
    found: dict[int, Result] = {}
    with Batcher(runner, batch=8, waiting=64) as batcher:

        def ask(first: int) -> None:
            for index in range(first, len(requests), 8):
                found[index] = batcher.submit(requests[index]).result(WAIT)

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, result in found.items():
        equal(result, expected[index])
    assert len(found) == 48


def test_images_are_encoded_between_batches(arpg_runner: Runner) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    with Batcher(arpg_runner, waiting=1) as batcher:
        with held(batcher, Request([0], schedule="arpg:4")):
            future = batcher.encode(pixels)
            with pytest.raises(QueueFull, match="1 images wait to be encoded"):
                batcher.encode(pixels)
            with pytest.raises(RequestError, match="use uint8"):
                batcher.encode(pixels[0])
            assert not future.done()
        np.testing.assert_array_equal(future.result(WAIT), arpg_runner.encode(pixels))
    with pytest.raises(EngineError, match="is closed"):
        batcher.encode(pixels)
