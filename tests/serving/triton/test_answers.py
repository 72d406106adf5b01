"""Several calls decoded together, each with its own answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from arforge.runner import Request, RequestError, Runner
from arforge.runner.batcher import Batch, Batcher
from arforge.runner.errors import Cancelled
from arforge.runner.preview import Partial
from arforge.serving.triton.answers import Images, answers
from arforge.serving.triton.inputs import Call


def stays() -> bool:
    return False


def gone() -> bool:
    return True


@pytest.fixture
def batches() -> list[Batch]:
    return []


@pytest.fixture
def batcher(runner: Runner, batches: list[Batch]) -> Iterator[Batcher]:
    with Batcher(runner, batch=8, waiting=8, observe=batches.append) as opened:
        yield opened


def test_calls_share_batches_and_fail_alone(runner: Runner, batcher: Batcher, batches: list[Batch]) -> None:
    requests = [
        Request([1, 2], seeds=[5, 6], schedule="zipar:2", guidance=2.0),
        Request([3], schedule="ntp"),
        Request([4], schedule="zipar:2", greedy=True),
        Request([999], schedule="zipar:2"),
        Request([5], schedule="zipar:x"),
    ]
    found = list(answers(batcher, [Call(one) for one in requests], [stays] * len(requests)))
    assert sorted(one.of for one in found) == list(range(5))
    assert all(one.last for one in found)
    by_call = {one.of: one.what for one in found}
    for index, request in enumerate(requests[:3]):
        images, expected = by_call[index], runner.generate(request)
        assert isinstance(images, Images)
        arrays = images.arrays(stream=False)
        assert list(arrays) == ["image", "tokens"]
        assert expected.images is not None
        np.testing.assert_array_equal(arrays["image"], expected.images)
        np.testing.assert_array_equal(arrays["tokens"], expected.tokens)
    assert [type(by_call[index]).__name__ for index in (3, 4)] == ["RequestError", "ScheduleError"]
    batcher.close()
    assert sorted(batch.images for batch in batches) == [1, 3]


def test_partial_images_come_before_the_last(runner: Runner, batcher: Batcher) -> None:
    request = Request([1, 2], schedule="ntp")
    found = list(answers(batcher, [Call(request, previews=20), Call(Request([3]), 0)], [stays] * 2))
    streamed = [one.what for one in found if one.of == 0]
    assert [one.last for one in found if one.of == 0] == [False, False, False, True]
    assert all(isinstance(one, Images) for one in streamed)
    expected = runner.generate(request)
    for one, done in zip(streamed, (20, 40, 60, 64), strict=True):
        assert isinstance(one, Images)
        arrays = one.arrays(stream=True)
        assert (arrays["done"] == done).all()
        assert (arrays["steps"] == 64).all()
        assert arrays["index"].tolist() == [[0], [1]]
        assert arrays["image"].shape == (2, 16, 16, 3)
        decided = arrays["tokens"] >= 0
        assert decided.sum() == 2 * done
        np.testing.assert_array_equal(arrays["tokens"][decided], expected.tokens[decided])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The engine waits in its first preview until this is set."""
    go_on, pixels = threading.Event(), Partial.pixels

    def late(partial: Partial, undecided: str) -> NDArray[np.uint8]:
        assert go_on.wait(60)
        return pixels(partial, undecided)

    monkeypatch.setattr(Partial, "pixels", late)
    yield go_on
    go_on.set()


def test_a_call_whose_client_has_gone_is_cancelled_and_the_others_go_on(
    runner: Runner, batcher: Batcher, held: threading.Event
) -> None:
    calls = [Call(Request([1], schedule="ntp"), previews=1), Call(Request([2], schedule="ntp"))]
    found = answers(batcher, calls, [gone, stays])
    first = next(found)
    assert (first.of, first.last, type(first.what)) == (0, True, Cancelled)
    held.set()
    (other,) = found  # what the engine still shows of the first goes nowhere
    assert isinstance(other.what, Images)
    np.testing.assert_array_equal(other.what.tokens, runner.generate([2], schedule="ntp").tokens)


def test_calls_of_clients_that_have_all_gone_stop(
    batcher: Batcher, batches: list[Batch], held: threading.Event
) -> None:
    (answer,) = answers(batcher, [Call(Request([0, 1], schedule="ntp"), previews=1)], [gone])
    assert isinstance(answer.what, Cancelled)
    held.set()
    batcher.close()
    assert [batch.result for batch in batches] == [None]


def test_who_stops_reading_leaves_nothing_running(batcher: Batcher, batches: list[Batch]) -> None:
    reading = answers(batcher, [Call(Request([1], schedule="ntp"), previews=1)], [stays])
    assert not next(reading).last
    reading.close()  # type: ignore[attr-defined]
    assert isinstance(next(answers(batcher, [Call(Request([2]))], [stays])).what, Images)
    batcher.close()
    assert batches[0].result is None or batches[0].images == 1


def test_an_answer_to_nothing_is_an_error(batcher: Batcher) -> None:
    (answer,) = answers(batcher, [Call(Request())], [stays])
    assert isinstance(answer.what, RequestError)
    assert not list(answers(batcher, [], []))
