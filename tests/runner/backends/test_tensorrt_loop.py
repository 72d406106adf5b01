"""Several calls a launch: the tokens and calls are those of the host's loop, with fewer launches, waits and bytes.

What runs ahead on drafts does so by the loop graph; next-token decoding beside it goes by the table graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, Opened
from own_paces import asked

from arforge.runner import Cancelled, EngineError, Runner
from arforge.runner.errors import NumericsError
from arforge.runner.loop_graph import LOOK_EVERY

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]


@pytest.fixture(scope="session")
def built(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """LlamaGen's for one and three images."""
    return build_copy(bundle, schedules=["ntp", "jacobi:6"], images=[1, 3], filters=True)


@pytest.fixture(scope="session")
def built_hosted(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """The same without a loop."""
    return build_copy(bundle, schedules=["ntp", "jacobi:6"], images=[1, 3], filters=True, loop=False)


@pytest.fixture(scope="session")
def built_mixed(bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """One whose other schedule leaves it a mask for all rows."""
    return build_copy(bundle, schedules=["zipar:4", "ntp", "jacobi:6"], images=[2])


@pytest.fixture(scope="session")
def built_noise(noise_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    return build_copy(noise_bundle, schedules=["ntp", "jacobi:6"], images=[2])


@pytest.fixture(scope="session")
def built_features(text_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    return build_copy(text_bundle, schedules=["ntp", "jacobi:5"], images=[1, 2], filters=True)


@pytest.fixture(scope="session")
def built_ids(ids_bundle: Path, build_copy: Callable[..., Path]) -> Path:
    """Rows end in a token here, so that next-token steps have one or two inputs."""
    return build_copy(ids_bundle, schedules=["ntp", "jacobi:5"], images=[2], filters=True)


@dataclass
class Counts:
    launches: int
    waits: int
    moved: int  # bytes


def counted(gpu: FakeGpu, work: Callable[[], Any]) -> tuple[Any, Counts]:
    before = gpu.launches, gpu.waits, gpu.moved
    result = work()
    return result, Counts(gpu.launches - before[0], gpu.waits - before[1], gpu.moved - before[2])


def tokens_alone(opened: Opened) -> Runner:
    """The runner without its image decoder, whose launches and copies would count."""
    opened[0].bundle = replace(opened[0].bundle, image_tokenizer=None)
    return opened[0]


@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_launches_waits_and_bytes_an_image(
    built: Path, built_hosted: Path, open_fake: Callable[..., Opened], schedule: str
) -> None:
    opened, hosted = open_fake(built), open_fake(built_hosted)
    found, counts = [], []
    for one in (opened, hosted):
        runner = tokens_alone(one)
        runner.generate([0], schedule=schedule)  # which is captured meanwhile
        result, count = counted(one[2], lambda runner=runner: runner.generate([7], [5], schedule))
        found.append(result)
        counts.append(count)
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert found[0].passes.tolist() == found[1].passes.tolist()
    mine, theirs = counts
    passes = int(found[0].passes[0])
    assert passes == 64 if schedule == "ntp" else passes < 64
    assert mine.launches == -(-passes // LOOK_EVERY)
    assert mine.waits == mine.launches + (schedule != "ntp")  # for the tokens, at an end that is not known before
    assert theirs.launches == theirs.waits == passes
    assert mine.moved < theirs.moved
    assert opened[1].captured


@pytest.mark.parametrize("settings", [{"guidance": 2.0}, {"guidance": 1.0, "top_k": 9}, {"greedy": True}], ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_batches_of_all_sizes_have_the_hosts_tokens_and_calls(
    built: Path, runner: Runner, open_fake: Callable[..., Opened], schedule: str, settings: dict[str, Any]
) -> None:
    mine, engine, gpu = open_fake(built)
    for number in (1, 3):
        mine.generate(CLASSES[:number], SEEDS[:number], schedule, guidance=2.0)  # which is captured meanwhile
    for number in (1, 2, 3, 5):
        request = {"classes": CLASSES[:number], "seeds": SEEDS[:number], "schedule": schedule, **settings}
        expected = runner.generate(**request)
        found, counts = counted(gpu, lambda request=request: mine.generate(**request, images=False))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        parts = [found.passes[:3].max(), *([found.passes[3:].max()] if number > 3 else [])]
        assert counts.waits == sum(-(-passes // LOOK_EVERY) + (schedule != "ntp") for passes in parts)
    assert engine.captured


def test_images_of_one_mask_run_ahead_one_by_one_and_go_step_by_step_together(
    built_mixed: Path, runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, gpu = open_fake(built_mixed)
    assert engine.one_mask
    for schedule, batches in (("ntp", 3), ("jacobi:6", 5)):
        expected = runner.generate(CLASSES, SEEDS, schedule, guidance=2.0)
        found, counts = counted(gpu, lambda schedule=schedule: mine.generate(CLASSES, SEEDS, schedule, guidance=2.0))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert counts.waits <= sum(-(-int(passes) // LOOK_EVERY) for passes in found.passes) + 2 * batches + 1
    expected = runner.generate(CLASSES, SEEDS, "zipar:4").tokens
    np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "zipar:4").tokens, expected)


def test_noise_goes_up_once(built_noise: Path, noise_runner: Runner, open_fake: Callable[..., Opened]) -> None:
    opened = open_fake(built_noise)
    mine, cells, vocabulary = tokens_alone(opened), 64, 32
    for schedule in ("ntp", "jacobi:6"):
        for settings in ({"guidance": 2.0}, {"guidance": 1.0, "temperature": 0.8}):
            expected = noise_runner.generate(CLASSES, SEEDS, schedule, **settings)
            request = partial_of(mine, CLASSES, SEEDS, schedule, **settings)
            found, counts = counted(opened[2], request)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.passes, expected.passes)
            batches, noise = 3, 4 * 2 * cells * vocabulary
            assert batches * noise < counts.moved < 2 * batches * noise


def partial_of(runner: Runner, *words: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: runner.generate(*words, **settings)


@pytest.mark.parametrize("kind", ["features", "ids"])
def test_prompts_of_unequal_lengths(
    request: pytest.FixtureRequest, open_fake: Callable[..., Opened], kind: str
) -> None:
    whole = request.getfixturevalue({"features": "text_runner", "ids": "ids_runner"}[kind])
    mine, engine, gpu = open_fake(request.getfixturevalue(f"built_{kind}"))
    for schedule, count in (("ntp", 2), ("jacobi:5", 5)):
        wishes = {name: value[:count] for name, value in asked(kind).items() if name != "top_k"}
        expected = whole.generate(**wishes, schedule=schedule, top_k=12)
        found, counts = counted(gpu, partial_of(mine, **wishes, schedule=schedule, top_k=12, images=False))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert counts.launches > 0
    assert engine.captured
    assert bool(engine._loops._made)


def test_a_narrower_window_takes_the_calls_that_there_are(
    built: Path, runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, _ = open_fake(built)
    expected = runner.generate([7], [5], "ntp", guidance=2.0)
    found = mine.generate([7], [5], "jacobi:5", guidance=2.0)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert found.passes.tolist() == runner.generate([7], [5], "jacobi:6", guidance=2.0).passes.tolist()
    assert [steps[1].inputs["tokens"].shape for steps in engine._loops._made] == [(2, 6)]


def test_progress_is_told_and_cancel_is_looked_at_between_launches(
    built: Path, runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, _, _ = open_fake(built)
    expected = runner.generate(CLASSES, SEEDS, "jacobi:6").tokens
    for schedule in ("ntp", "jacobi:6"):
        told: list[tuple[int, int]] = []
        mine.generate([1], schedule=schedule, progress=lambda *now, told=told: told.append(now))
        assert told == sorted(told)
        assert told[-1] == (64, 64)
        if schedule == "ntp":
            assert told == [(8 * (1 + index), 64) for index in range(8)]
        flag = threading.Event()
        with pytest.raises(Cancelled, match=r"cancelled after \d+ of 64 steps"):
            mine.generate([1, 2, 3], schedule=schedule, cancel=flag, progress=lambda *_, flag=flag: flag.set())
        np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "jacobi:6").tokens, expected)


@pytest.mark.parametrize("schedule", ["ntp", "jacobi:6"])
def test_numbers_that_are_none_stop_it_with_the_hosts_message(
    built: Path, built_hosted: Path, open_fake: Callable[..., Opened], schedule: str
) -> None:
    for path in (built, built_hosted):
        mine, engine, _ = open_fake(path)
        expected = mine.generate(CLASSES, SEEDS, schedule).tokens
        spoil = Spoil(engine)
        with pytest.raises(NumericsError) as caught:
            mine.generate(CLASSES[:3], SEEDS[:3], schedule, progress=spoil)
        assert str(caught.value).startswith(
            f"step {spoil.spoilt} of 64, image 1: the logits are non-finite, first seen in the values of layer 0; check"
        )
        np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, schedule).tokens, expected)


class Spoil:
    """Puts a NaN where an image's condition is kept, once 16 steps are done."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.spoilt = engine, 0

    def __call__(self, done: int, steps: int) -> None:
        assert steps == 64
        if done >= 16 and not self.spoilt:
            self.spoilt = done
            model = self.engine._bundle.model
            values = np.full((model.kv_heads, 1, model.head_size), np.nan, np.float32)
            self.engine.write_cache("value_cache_0", 1, 0, values)


def test_an_engine_that_fails_between_two_calls_is_quoted_and_the_next_request_is_sound(
    built: Path, runner: Runner, open_fake: Callable[..., Opened]
) -> None:
    mine, engine, _ = open_fake(built)
    expected = runner.generate(CLASSES, SEEDS, "jacobi:6")
    mine.generate([1], schedule="jacobi:6")
    between = next(one for one in engine._loops._loaded.library.trt.engines if "feeders" in one.inputs)  # type: ignore[union-attr]
    between.failure = "out of registers"
    with pytest.raises(EngineError, match=r"failed in .*loop-.*\.engine: out of registers"):
        mine.generate([1, 2, 3], schedule="jacobi:6")  # whose calls are no graph yet
    between.failure = ""
    np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "jacobi:6").tokens, expected.tokens)


def test_without_capture_it_runs_all_the_same(built: Path, runner: Runner, open_fake: Callable[..., Opened]) -> None:
    mine, engine, gpu = open_fake(built, capturable=False)
    expected = runner.generate(CLASSES, SEEDS, "jacobi:6").tokens
    np.testing.assert_array_equal(mine.generate(CLASSES, SEEDS, "jacobi:6").tokens, expected)
    assert not engine.captured
    assert gpu.launches == 0


def test_an_identity_that_says_other_sizes_is_refused(built: Path, open_fake: Callable[..., Opened]) -> None:
    mine, engine, _ = open_fake(built)
    engine._loops._bundle = replace(mine.bundle, model=replace(mine.bundle.model, grid=(4, 8)))
    with pytest.raises(EngineError, match=r"does not take known as \[1, 32\]: build the engine again"):
        mine.generate([1], schedule="jacobi:6")
