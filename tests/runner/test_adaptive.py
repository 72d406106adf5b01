"""ZipAR whose rows start as the tokens of each image allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_paces import OneMask, asked

from arforge.engines import onnxruntime
from arforge.runner import Cancelled, Runner, Schedule, ScheduleError, compile_schedule, open_bundle
from arforge.runner.bundle import Bundle
from arforge.runner.plan import make_plan
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.file import MAGIC, PREFIX, VERSION, dump, load
from arforge.runner.schedules.rows import rows_of
from arforge.runner.schedules.schedule import RowRules, Step
from arforge.runner.schedules.specification import as_it_stands

OPTIONS = ("", ",first-row=windowed", ",seed=nearest,first-row=windowed", ",holes=masked", ",cfg-interval=9")


def table_of(grid: tuple[int, int], rules: RowRules, starts: Callable[[int, int], bool]) -> Schedule:
    """The table of rows that start where `starts`, of a row and the cells of the row above, says so."""
    rows = rows_of(grid, rules)
    steps = []
    while not rows.complete:
        above = list(rows.decoded)
        step = rows.next()
        if rows.trial is not None and not starts(rows.trial, above[rows.trial - 1]):
            rows.withdraw()
            step = replace(step, inputs=step.inputs[:-1], targets=step.targets[:-1], commit=step.commit - 1)
        steps.append(step)
    zero_slots = max(given.holes for step in steps for given in step.inputs)
    shifted = [replace(step, retire=tuple(slot + zero_slots for slot in step.retire)) for step in steps]
    return checked(Schedule(f"starts-{hash(tuple(steps))}", grid, tuple(shifted), zero_slots=zero_slots))


def by_tables(opened: Runner, one: dict[str, Any], specification: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One image's tokens and steps, from tables alone: a row starts where its first token is as at the start before."""
    model = opened.bundle.model
    rules = opened.bundle.schedule(specification).rows
    assert rules is not None
    found: dict[int, int] = {}
    height, width = model.grid

    def decode(last: int, at: int) -> tuple[np.ndarray, int]:
        """With row `last` starting at so many cells above it, and those below it in next-token order."""
        table = table_of(model.grid, rules, lambda row, above: above >= {**found, last: at}.get(row, width))
        with monkeypatch.context() as patch:
            patch.setattr(Bundle, "schedule", lambda self, name, kept=(): table)
            made = opened.generate(**one, schedule=f"ntp,cfg-interval={abs(hash(table.specification)) % 10**9}")
        return made.tokens[0], made.steps

    for row in range(1, height):
        cell = row * width
        if row == 1 and rules.first_row == "published" and rules.row_end is None:
            continue
        before = None
        for at in range(rules.window, width):
            token = decode(row, at)[0][cell]
            if token == before:
                found[row] = at
                break
            before = token
    return decode(0, 0)


@pytest.mark.parametrize(
    ("kind", "specification"),
    [
        ("classes", "zipar:adaptive=2"),
        ("classes", "zipar:adaptive=1,first-row=windowed,seed=nearest"),
        ("classes", "zipar:adaptive=3,holes=masked,first-row=windowed"),
        ("ids", "zipar:adaptive=2"),
        ("features", "zipar:adaptive=2,first-row=windowed"),
    ],
)
def test_an_image_is_decoded_by_the_table_of_its_own_starts(
    runner: Runner,
    text_runner: Runner,
    ids_runner: Runner,
    kind: str,
    specification: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = {"classes": runner, "features": text_runner, "ids": ids_runner}[kind]
    settings = asked(kind)
    found = opened.generate(**settings, schedule=specification)
    for image in range(2):
        one = {name: value[image : image + 1] if isinstance(value, list) else value for name, value in settings.items()}
        tokens, steps = by_tables(opened, one, specification, monkeypatch)
        np.testing.assert_array_equal(found.tokens[image], tokens)
        assert found.passes[image] == steps
    assert found.steps == found.passes.max()
    assert len(set(found.passes.tolist())) > 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["classes", "features", "ids"])
def test_neither_tokens_nor_passes_depend_on_the_batch(
    runner: Runner, text_runner: Runner, ids_runner: Runner, kind: str, batch: int
) -> None:
    opened = {"classes": runner, "features": text_runner, "ids": ids_runner}[kind]
    settings = {**asked(kind), "schedule": "zipar:adaptive=2"}
    whole, parted = opened.generate(**settings), opened.generate(**settings, batch=batch)
    np.testing.assert_array_equal(parted.tokens, whole.tokens)
    np.testing.assert_array_equal(parted.passes, whole.passes)
    order = [3, 0, 4, 1, 2]
    mixed = {name: [value[i] for i in order] if isinstance(value, list) else value for name, value in settings.items()}
    np.testing.assert_array_equal(opened.generate(**mixed).tokens, whole.tokens[order])


def test_an_engine_of_fixed_widths_pads_to_them(bundle_copy: Path, runner: Runner) -> None:
    settings = {**asked("classes"), "schedule": "zipar:adaptive=2"}
    wanted = runner.generate(**settings)
    onnxruntime.build(bundle_copy, widths=[2, 7])
    with Runner.open(bundle_copy, threads=1) as padded:
        found = padded.generate(**settings)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.passes, wanted.passes)


def test_images_are_decoded_one_at_a_time_where_rows_share_a_mask(bundle: Path, runner: Runner) -> None:
    opened = replace(open_bundle(bundle), image_tokenizer=None)
    settings = {**asked("classes"), "schedule": "zipar:adaptive=2"}
    with Runner(opened, OneMask(opened, "fp32", threads=1)) as shared:
        found = shared.generate(**settings)
    np.testing.assert_array_equal(found.tokens, runner.generate(**settings).tokens)


def test_a_window_of_the_whole_row_is_next_token(runner: Runner, ids_runner: Runner) -> None:
    for opened, kind, specification in (
        (runner, "classes", "zipar:adaptive=8"),
        (ids_runner, "ids", "zipar:adaptive=9"),
    ):
        wanted = opened.generate(**asked(kind), schedule="ntp")
        found = opened.generate(**asked(kind), schedule=specification)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        assert found.steps == wanted.steps


def test_progress_counts_the_cells_that_all_images_have(runner: Runner) -> None:
    settings = {**asked("classes"), "schedule": "zipar:adaptive=2"}
    expected = runner.generate(**settings)
    seen: list[tuple[int, int]] = []
    runner.generate(**settings, batch=3, progress=lambda done, steps: seen.append((done, steps)))
    done = [done for done, _ in seen]
    assert {total for _, total in seen} == {128}
    assert done == sorted(done)
    assert 64 in done
    assert done[-1] == 128

    class AfterSome:
        def is_set(self) -> bool:
            return len(calls) > 20

    calls: list[int] = []
    with pytest.raises(Cancelled, match=r"cancelled after \d+ of 64 steps"):
        runner.generate(**settings, progress=lambda done, _: calls.append(done), cancel=AfterSome())
    np.testing.assert_array_equal(runner.generate(**settings).tokens, expected.tokens)


grids = st.tuples(st.integers(1, 6), st.integers(1, 7))


@given(grids, st.integers(1, 7), st.sampled_from(OPTIONS), st.booleans(), st.integers(0, 2**32))
def test_the_table_bounds_width_holes_and_cache(
    grid: tuple[int, int], window: int, options: str, ends: bool, seed: int
) -> None:
    """Whichever rows start where, the steps are a sound table within the bounds that engines are made for."""
    window = min(window, grid[1])
    text = f"zipar:adaptive={window + 1}" if ends else f"zipar:adaptive={window}{options}"
    schedule = compile_schedule(text, grid, row_end=0 if ends else None)
    rules = schedule.rows
    assert rules is not None
    plan = make_plan(schedule, None)
    random = np.random.default_rng(seed)
    share = random.random()
    rows = rows_of(grid, rules, schedule.zero_slots)
    widths, holes, ends_at = [], [], []
    trials = 0
    while not rows.complete:
        above, first = list(rows.decoded), rows.slot
        step: Step = rows.next()
        widths.append(step.width)
        holes.append(max(given.holes for given in step.inputs))
        ends_at.append(first + step.width)
        if rows.trial is not None:
            trials += 1
            assert rules.window <= above[rows.trial - 1] < grid[1]
            assert step.targets[-1] == (step.width - 1, rows.trial * grid[1])
            if random.random() < share:
                rows.withdraw()
                assert (rows.slot, rows.decoded[rows.trial]) == (first + step.width - 1, 0)
    assert max(widths) <= schedule.widths[-1]
    assert max(holes) <= schedule.zero_slots
    assert max(ends_at) + schedule.widths[-1] - 1 <= plan.slots
    table = table_of(grid, rules, lambda row, above: (row * 7 + above * 3 + seed) % 3 == 0)
    assert sorted(table.order) == list(range(schedule.cells))
    assert all(given.holes <= schedule.zero_slots for step in table.steps for given in step.inputs)


def test_the_schedule_holds_the_rules_of_its_rows() -> None:
    schedule = compile_schedule("zipar:adaptive=2,seed=nearest", (4, 6))
    assert schedule.rows == RowRules(2, seed="nearest")
    assert schedule.steps == compile_schedule("zipar:2,seed=nearest", (4, 6)).steps
    assert schedule.widths == (1, 2, 3)
    assert load(dump(schedule), "a.schedule") == schedule
    assert schedule.to_json()["rows"] == asdict(schedule.rows)
    ended = compile_schedule("zipar:adaptive=3,cfg-interval=2", (4, 6), row_end=1)
    assert ended.rows == RowRules(2, cfg_interval=2, row_end=1)
    assert ended.steps == compile_schedule("zipar:3,cfg-interval=2", (4, 6), row_end=1).steps
    assert load(dump(ended), "a.schedule") == ended
    assert as_it_stands("zipar:adaptive=3,cfg-interval=2") == "zipar:3,cfg-interval=2"
    plan = make_plan(schedule, [2, 8])
    assert plan.kinds == {(2, 0), (8, 0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 3}, "its steps are not those that its rows are bounded by"),
        ({"window": 0}, "window 0 does not fit"),
        ({"window": 7}, "window 7 does not fit"),
        ({"holes": "masked"}, "its steps are not those"),
        ({"row_end": 0}, "its steps are not those"),
        ({"row_end": 0, "window": 0}, "window 1 does not fit"),
        ({"row_end": -1}, "rows have a number that is out of range"),
        ({"window": True}, "rows have a number"),
        ({"window": 10**30}, "rows have a number"),
        ({"cfg_interval": None}, "rows have a number"),
        ({"seed": "other"}, "rows have seed 'other': use one of published, nearest"),
        ({"holes": []}, r"rows have holes \[\]"),
        ({"more": 1}, "rows must have cfg_interval, first_row, holes, row_end, seed, window"),
    ],
)
def test_a_file_whose_rules_do_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    schedule = compile_schedule("zipar:adaptive=2", (4, 6))
    data = dump(schedule)
    rules = {**asdict(schedule.rows or RowRules(1)), **changes}
    with pytest.raises(ScheduleError, match=message):
        load(with_rows(data, rules), "a.schedule")


@pytest.mark.parametrize("rules", [[], 3, "zipar", None])
def test_rules_of_another_type_are_refused(rules: Any) -> None:
    with pytest.raises(ScheduleError, match="rows must have"):
        load(with_rows(dump(compile_schedule("zipar:adaptive=2", (4, 6))), rules), "a.schedule")


def with_rows(data: bytes, rules: Any) -> bytes:
    _, _, length = PREFIX.unpack_from(data)
    start = PREFIX.size + length
    text = json.dumps({**json.loads(data[PREFIX.size : start]), "rows": rules}).encode()
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text + data[start:]


def test_models_of_other_orders_have_no_rows_to_start(par_runner: Runner) -> None:
    with pytest.raises(ScheduleError, match="decodes in raster order, this model in regions order: use one of par"):
        par_runner.generate(classes=[1], schedule="zipar:adaptive=2")
