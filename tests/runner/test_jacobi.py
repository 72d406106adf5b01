"""Next-token decoding that runs ahead on drafts: its own tokens in fewer calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_cases import NTP, fitted, identity, manifest
from own_paces import OneMask
from tiny import TEXT_CONFIG
from tiny_ids import prompt_of

from arforge.engines import onnxruntime
from arforge.runner import Cancelled, EngineError, Runner, ScheduleError, compile_schedule, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.decoding import Drawing, JacobiDecoding
from arforge.runner.plan import NO_PREFIXES, make_plan
from arforge.runner.randomness import Randomness
from arforge.runner.schedules.file import dump, load

IMAGES = 6


class Recording(OnnxRuntimeEngine):
    """Notes width and write indices of each call; `rule` gives the tokens in place of the graph's."""

    calls: list[tuple[int, list[int]]]

    def run(self, width: int, queries: int = 0) -> None:
        self.calls.append((width, self.buffers(width, queries).write_index.tolist()))
        super().run(width, queries)


@pytest.fixture
def recording(bundle: Path) -> Iterator[tuple[Runner, Recording]]:
    opened = replace(open_bundle(bundle), image_tokenizer=None)
    engine = Recording(opened, "fp32", threads=1)
    engine.calls = []
    with Runner(opened, engine) as runner:
        yield runner, engine


def asked(kind: str) -> dict[str, Any]:
    if kind == "classes":
        return {"classes": list(range(IMAGES))}
    if kind == "ids":
        return {"ids": [prompt_of(6 + 3 * index, seed=index) for index in range(IMAGES)]}
    random = np.random.default_rng(0)
    width = TEXT_CONFIG.caption_dim
    return {"features": [0.5 * random.standard_normal((1 + 4 * n, width), np.float32) for n in range(IMAGES)]}


@pytest.mark.parametrize("window", [2, 3, 8, 64])
@pytest.mark.parametrize("kind", ["classes", "features", "ids"])
def test_tokens_are_those_of_next_token(
    runner: Runner, text_runner: Runner, ids_runner: Runner, kind: str, window: int
) -> None:
    opened = {"classes": runner, "features": text_runner, "ids": ids_runner}[kind]
    settings: dict[str, Any] = {**asked(kind), "seeds": [5, 1, 9, 2, 6, 5], "guidance": 2.5, "top_k": 12}
    wanted = opened.generate(**settings, schedule="ntp")
    found = opened.generate(**settings, schedule=f"jacobi:{window}")
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert (wanted.passes == wanted.steps).all()
    assert (found.passes < wanted.steps).all()
    assert found.steps == found.passes.max()


@pytest.mark.parametrize("batch", [1, 4])
def test_neither_tokens_nor_passes_depend_on_the_batch(ids_runner: Runner, batch: int) -> None:
    settings: dict[str, Any] = {**asked("ids"), "schedule": "ntp,jacobi=6", "guidance": [1.0, 3.0, 1.0, 2.0, 5.0, 3.0]}
    whole, parted = ids_runner.generate(**settings), ids_runner.generate(**settings, batch=batch)
    np.testing.assert_array_equal(parted.tokens, whole.tokens)
    np.testing.assert_array_equal(parted.passes, whole.passes)
    assert len(set(whole.passes.tolist())) > 1


def test_greedy_images_and_ends_of_guidance_are_next_token_too(runner: Runner) -> None:
    settings: dict[str, Any] = {**asked("classes"), "greedy": [True, False] * 3}
    wanted = runner.generate(**settings, schedule="ntp,cfg-interval=20")
    found = runner.generate(**settings, schedule="ntp,cfg-interval=20,jacobi=9")
    np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_calls_are_the_condition_alone_and_then_windows(recording: tuple[Runner, Recording]) -> None:
    runner, engine = recording
    result = runner.generate(**asked("classes"), schedule="jacobi:5", guidance=2.0)
    widths = [width for width, _ in engine.calls]
    assert widths == [1, *[5] * (len(widths) - 1)]
    starts = np.array([indices for _, indices in engine.calls])
    np.testing.assert_array_equal(starts[:, :IMAGES], starts[:, IMAGES:])  # both rows of an image
    gained = np.diff(starts[:, :IMAGES], axis=0)
    assert ((gained >= 0) & (gained <= 5)).all()
    assert len(engine.calls) == result.steps
    for image, passes in enumerate(result.passes):  # done images stay where they are
        assert (gained[: passes - 1, image] > 0).all()
        assert (gained[passes:, image] == 0).all()


class Rule:
    """A model in place of the graph: the token after what stands before, a function of it and of the seed."""

    def __init__(self, grid: tuple[int, int], seed: int) -> None:
        self.cells = grid[0] * grid[1]
        self.weights = np.random.default_rng(seed).integers(1, 50, self.cells)

    def after(self, line: list[int]) -> int:
        """Of the last few tokens, so that drafts come right before all before them do."""
        recent = [int(weight) * token for weight, token in zip(self.weights, line[-3:], strict=False)]
        return (sum(recent) + len(line) // 5) % 3


def jacobi_by_hand(rule: Rule, grid: tuple[int, int], window: int) -> tuple[list[int], int]:
    """The published loop with equality for its test: decided tokens and drafts in, tokens out, until all is decided."""
    cells, columns = rule.cells, grid[1]
    decided: list[int] = []
    drafts: dict[int, int] = {}
    passes = 0
    while len(decided) < cells:
        first = len(decided)
        width = 1 if not passes else min(window, cells - first)
        for cell in range(first, first + width - 1):
            if cell not in drafts:
                above = cell - columns
                drafts[cell] = (decided[above] if above < first else drafts[above]) if above >= 0 else 0
        given = [drafts[cell] for cell in range(first, first + width - 1)]
        out = [rule.after([*decided, *given[:place]]) for place in range(width)]
        passes += 1
        run = 1
        while run < width and given[run - 1] == out[run - 1]:
            run += 1
        decided += out[:run]
        drafts.update({first + place: token for place, token in enumerate(out)})
    return decided, passes


@pytest.mark.parametrize("window", [2, 4, 7, 20])
@pytest.mark.parametrize("seed", range(6))
def test_passes_are_those_of_the_loop_by_hand(window: int, seed: int) -> None:
    grid, rule = (4, 5), Rule((4, 5), seed)
    plan = make_plan(compile_schedule(f"jacobi:{window}", grid), None)
    assert plan.line is not None
    known = np.zeros((1, 21), np.int64)
    drawing = Drawing(Randomness.of(np.zeros(1, np.uint64), 20), np.ones(1))
    decoding = JacobiDecoding(plan, plan.line, known, NO_PREFIXES, drawing)
    cache: dict[int, int] = {}
    while (shape := decoding.shape) is not None:
        buffers: Any = Buffers(shape[0], plan.slots)
        decoding.fill(buffers)
        first = int(buffers.write_index[0])
        cache.update({first + place: int(token) for place, token in enumerate(buffers.tokens[0])})
        for place in range(shape[0]):
            seen = np.flatnonzero(buffers.mask[0, 0, place])
            assert seen.tolist() == list(range(min(first + place + 1, 20)))  # behind the line nothing is seen
            buffers.next_tokens[0, place] = rule.after([cache[slot] for slot in seen[1:]])  # without the condition
        decoding.store(buffers)
    tokens, passes = jacobi_by_hand(rule, grid, window)
    alone: list[int] = []
    while len(alone) < 20:
        alone.append(rule.after(alone))
    assert known[0, :20].tolist() == tokens == alone
    assert decoding.passes.tolist() == [passes]


class Buffers:
    def __init__(self, width: int, slots: int) -> None:
        self.tokens, self.positions = np.zeros((2, 1, width), np.int64)
        self.next_tokens = np.zeros((1, width), np.int64)
        self.write_index, self.mask = np.zeros(1, np.int64), np.zeros((1, 1, width, slots), bool)
        self.uniforms, self.guidance = np.zeros((2, 1, width), np.float32)
        self.noise = None


def test_progress_counts_what_all_images_have_and_a_cancelled_request_leaves_nothing(runner: Runner) -> None:
    settings: dict[str, Any] = {**asked("classes"), "schedule": "jacobi:8"}
    expected = runner.generate(**settings)
    seen: list[tuple[int, int]] = []
    runner.generate(**settings, progress=lambda done, steps: seen.append((done, steps)), batch=3)
    assert [steps for _, steps in seen] == [128] * len(seen)
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 128
    assert 64 in done

    class AfterSome:
        def is_set(self) -> bool:
            return len(calls) > 20

    calls: list[int] = []
    with pytest.raises(Cancelled, match=r"cancelled after \d+ of 64 steps"):
        runner.generate(**settings, progress=lambda done, _: calls.append(done), cancel=AfterSome())
    np.testing.assert_array_equal(runner.generate(**settings).tokens, expected.tokens)


def test_progress_counts_steps_where_one_feeds_the_end_of_a_row_too(ids_runner: Runner) -> None:
    seen: list[tuple[int, int]] = []
    ids_runner.generate(**asked("ids"), schedule="jacobi:8", batch=3, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (128, 128)
    assert (64, 128) in seen
    assert sorted(seen) == seen


def test_an_engine_of_fixed_widths_pads_to_them(bundle_copy: Path, runner: Runner) -> None:
    settings: dict[str, Any] = {**asked("classes"), "schedule": "jacobi:6"}
    onnxruntime.build(bundle_copy, widths=[1, 8])
    with Runner.open(bundle_copy, threads=1) as padded:
        np.testing.assert_array_equal(padded.generate(**settings).tokens, runner.generate(**settings).tokens)
        with pytest.raises(EngineError, match="decodes 9 tokens in a step, the engine was built for widths 1, 8"):
            padded.generate(**{**settings, "schedule": "jacobi:9"})


def test_images_are_decoded_one_at_a_time_where_rows_share_a_mask(bundle: Path, runner: Runner) -> None:
    opened = replace(open_bundle(bundle), image_tokenizer=None)
    settings: dict[str, Any] = {**asked("classes"), "schedule": "jacobi:6"}
    with Runner(opened, OneMask(opened, "fp32", threads=1)) as shared:
        found = shared.generate(**settings)
    expected = runner.generate(**settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)


def test_the_schedule_says_how_far_it_runs_ahead() -> None:
    schedule = compile_schedule("jacobi:7", (4, 4))
    assert schedule.specification == "ntp,jacobi=7"
    assert schedule.widths == (1, 7)
    assert schedule.steps == compile_schedule("ntp", (4, 4)).steps
    assert load(dump(schedule), "a.schedule") == schedule
    assert compile_schedule("jacobi:7,cfg-interval=3", (4, 4)).specification == "ntp,cfg-interval=3,jacobi=7"
    rows = compile_schedule("jacobi:7", (4, 4), row_end=0)
    assert rows.steps == compile_schedule("ntp", (4, 4), row_end=0).steps


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("jacobi:1", "jacobi 1 is out of range on 16 cells: use 2 to 16, or leave it out"),
        ("jacobi:17", "use 2 to 16"),
        ("jacobi:-3", "use 2 to 16"),
        ("ntp,jacobi=x", "option jacobi needs a whole number"),
        ("jacobi", "unknown schedule 'jacobi'"),
        ("zipar:2,jacobi=17", "use 2 to 16"),
        ("zipar:0,jacobi=4", "window 0 does not fit"),
    ],
)
def test_windows_that_do_not_fit_are_refused(specification: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        compile_schedule(specification, (4, 4))


@pytest.mark.parametrize("specification", ["par:4", "arpg:5"])
def test_a_file_whose_table_is_no_line_does_not_run_ahead(specification: str) -> None:
    table = replace(compile_schedule(specification, (4, 4)), jacobi=4)
    with pytest.raises(ScheduleError, match="its inputs are no line to run ahead of on drafts"):
        load(dump(table), "a.schedule")


AUTO = [
    {"images": images, "inputs": inputs, "calls": 30, "time": time}
    for images, inputs, time in ((1, 4, 0.7), (1, 2, 0.8), (4, 3, 0.9), (4, 6, 1.1), (8, 2, 1.3))
]


@pytest.mark.parametrize(
    ("count", "batch", "by"),
    [(1, 8, "jacobi:4"), (3, 8, "jacobi:3"), (4, 4, "jacobi:3"), (5, 8, "ntp"), (6, 4, "jacobi:3"), (9, 8, "ntp")],
)
def test_left_to_the_engine_a_batch_takes_the_window_that_pays_for_it(
    bundle_copy: Path, count: int, batch: int, by: str
) -> None:
    identity({"jacobi": AUTO})(bundle_copy)
    given: dict[str, Any] = {"classes": list(range(count)), "batch": batch, "guidance": 2.0}
    with Runner.open(bundle_copy, threads=1) as runner:
        wanted = runner.generate(**given, schedule=by)
        found = runner.generate(**given, schedule="jacobi:auto")
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        assert found.schedule == by.replace("jacobi:", "ntp,jacobi=")
        together = min(count, batch)
        np.testing.assert_array_equal(found.passes[:together], wanted.passes[:together])
        rest = count - together  # of a last, smaller batch, which has a window of its own
        alone = runner.generate(**given, schedule={0: by, 1: "jacobi:4", 2: "jacobi:3"}[rest])
        np.testing.assert_array_equal(found.passes[together:], alone.passes[together:])


def test_an_engine_that_measured_nothing_decodes_token_by_token(runner: Runner) -> None:
    found = runner.generate(**asked("classes"), schedule="ntp,jacobi=auto")
    assert found.schedule == "ntp"
    assert (found.passes == 64).all()


def test_an_engine_of_before_tells_of_one_image(bundle_copy: Path) -> None:
    identity({"jacobi": [{"inputs": 4, "calls": 30.5, "time": 0.7}]})(bundle_copy)
    with Runner.open(bundle_copy, threads=1) as runner:
        assert runner.generate([1], schedule="jacobi:auto").schedule == "ntp,jacobi=4"
        assert runner.generate([1, 2], schedule="jacobi:auto").schedule == "ntp"


def test_an_engine_whose_wide_steps_round_otherwise_does_not_run_ahead_by_itself(bundle_copy: Path) -> None:
    path = open_bundle(bundle_copy).engines[0].path
    content = json.loads((bundle_copy / path).read_text())
    del content["exact_width"]
    identity(json.dumps({**content, "jacobi": AUTO}).encode())(bundle_copy)
    with Runner.open(bundle_copy, threads=1) as runner:
        assert runner.generate([1], schedule="jacobi:auto").schedule == "ntp"


def test_a_bundle_stores_that_its_engine_decides(bundle_copy: Path) -> None:
    identity({"jacobi": AUTO})(bundle_copy)
    fitted(NTP, dump(compile_schedule("jacobi:auto", (8, 8))))(bundle_copy)
    manifest(lambda found: _entry(found).update(specification="ntp,jacobi=auto"))(bundle_copy)
    with Runner.open(bundle_copy, threads=1) as runner:
        assert "ntp,jacobi=auto" in runner.bundle.specifications
        assert runner.generate([1], schedule="jacobi:auto").schedule == "ntp,jacobi=4"


def _entry(found: Any) -> Any:
    return next(entry for entry in found["schedules"] if entry["path"] == NTP)
