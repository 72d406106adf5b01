from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arforge.engines import onnxruntime
from arforge.runner import EngineError, Runner, Schedule, compile_schedule, open_bundle
from arforge.runner.conditions import class_conditions
from arforge.runner.plan import make_plan, step_shapes
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.narrow import narrowed
from arforge.runner.schedules.schedule import Input, Source, Step, Target
from arforge.runner.schedules.visibility import masks

ZIPAR = compile_schedule("zipar:2", (8, 8))


def test_a_plan_without_widths_runs_every_step_as_it_is() -> None:
    plan = make_plan(ZIPAR, None)
    assert [step.width for step in plan.steps] == [step.width for step in ZIPAR.steps]
    assert [step.write_index for step in plan.steps] == list(ZIPAR.write_indices)
    assert plan.slots == ZIPAR.slots
    for planned, step in zip(plan.steps, ZIPAR.steps, strict=True):
        assert [(row, cell) for row, cell in step.targets] == list(
            zip(planned.target_rows.tolist(), planned.target_cells.tolist(), strict=True)
        )
        assert planned.positions.tolist() == [read.position for read in step.inputs]


def test_steps_are_padded_to_the_next_width_with_their_last_input() -> None:
    plain, padded = make_plan(ZIPAR, None), make_plan(ZIPAR, [3, 8])
    assert {step.width for step in padded.steps} == {3, 8}
    for wide, step in zip(padded.steps, plain.steps, strict=True):
        assert wide.width == (3 if step.width <= 3 else 8)
        for name in ("columns", "positions", "mask"):
            rows, expected = getattr(wide, name), getattr(step, name)
            if name == "mask":
                assert not rows[:, expected.shape[1] :].any()
                rows = rows[:, : expected.shape[1]]
            np.testing.assert_array_equal(rows[: step.width], expected)
            np.testing.assert_array_equal(rows[step.width :], np.repeat(expected[-1:], wide.width - step.width, 0))
        assert (wide.write_index, wide.target_rows.tolist()) == (step.write_index, step.target_rows.tolist())


def test_padding_gets_spare_slots_at_the_end() -> None:
    plan = make_plan(ZIPAR, [8])
    assert plan.slots == max(step.write_index for step in plan.steps) + 8
    assert all(step.mask.shape == (8, plan.slots) for step in plan.steps)


@pytest.mark.parametrize("widths", [None, [1, 8]])
def test_steps_of_a_schedule_that_runs_ahead_see_the_slots_of_its_widest_call(widths: list[int] | None) -> None:
    plan = make_plan(compile_schedule("jacobi:8", (4, 4)), widths, prompt_slots=3)
    assert plan.line is not None
    assert plan.slots == len(plan.line) + 8 + 3
    assert all(step.mask.shape[1] == plan.slots for step in plan.steps)  # as engines compare them step by step
    assert not any(step.mask[:, len(plan.line) + 3 :].any() for step in plan.steps)


def test_widths_that_are_too_narrow_say_which_one_is_needed() -> None:
    with pytest.raises(EngineError, match=r"decodes 2 tokens in a step.*widths 1: rebuild.*--width 2"):
        make_plan(compile_schedule("zipar:3", (4, 4)), [1])


def test_tokens_are_read_from_cells_conditions_and_special_tokens(bundle: Path) -> None:
    schedule = Schedule(
        "hand-made",
        (1, 2),
        (
            Step((Input(Source.SPECIAL, 3, 0, 0), Input(Source.CONDITION, 0, 0, 0)), (Target(1, 1),), 2),
            Step((Input(Source.SPECIAL, 1, 0, 0), Input(Source.CELL, 1, 2, 2)), (Target(1, 0),), 2),
        ),
    )
    plan = make_plan(schedule, None)
    model = replace(open_bundle(bundle).model, specials=(50, 60, 70, 80))
    known = plan.known(model, class_conditions(model, [4, 7]).rows(guided=True))
    known[:, 1] = [20, 21, 20, 21]
    first, second = (known[:, step.columns].tolist() for step in plan.steps)
    null, zero = model.class_condition.null_class, model.class_condition.first_class
    assert first == [[80, zero + 4], [80, zero + 7], [80, null], [80, null]]
    assert second == [[60, cell] for cell in (20, 21, 20, 21)]


def test_guidance_weights_scale_the_requests_guidance() -> None:
    plan = make_plan(compile_schedule("ntp,cfg-interval=0", (1, 4)), None)
    assert [step.scale(4.0) for step in plan.steps] == [4.0, 4.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("widths", "schedule"),
    [([1], "ntp"), ([3], "ntp"), ([4, 8], "ntp"), ([4, 8], "zipar:2"), ([2, 5, 64], "zipar:3"), ([16], "zipar:1")],
)
def test_an_engine_of_fixed_widths_gives_the_same_tokens(
    bundle_copy: Path, runner: Runner, widths: list[int], schedule: str
) -> None:
    onnxruntime.build(bundle_copy, widths=widths)
    request = {"classes": [2, 5], "seeds": [7, 8], "schedule": schedule, "guidance": 1.5}
    with Runner.open(bundle_copy, threads=1) as padded:
        np.testing.assert_array_equal(padded.generate(**request).tokens, runner.generate(**request).tokens)


@pytest.mark.parametrize("widths", [[24], [7], [5, 6], [4]])
def test_known_cells_are_fed_in_as_many_steps_as_the_engine_needs(
    tmp_path: Path, arpg_bundle: Path, arpg_runner: Runner, widths: list[int]
) -> None:
    known = np.where(np.arange(24).reshape(4, 6) % 4 == 1, -1, np.arange(24).reshape(4, 6))
    request = {"classes": [2, 5], "seeds": [7, 8], "schedule": "arpg:8", "guidance": 1.5, "known": known}
    expected = arpg_runner.generate(**request)
    narrow = Path(shutil.copytree(arpg_bundle, tmp_path / "narrow.bundle"))
    onnxruntime.build(narrow, widths=widths)
    with Runner.open(narrow, threads=1) as padded:
        found = padded.generate(**request)
    assert (found.tokens == expected.tokens).all()
    assert found.steps == expected.steps + math.ceil(19 / max(widths)) - 1


def test_what_is_fed_in_parts_keeps_its_ranks_slots_and_targets() -> None:
    schedule = compile_schedule("arpg:2", (3, 3), tuple(range(7)))
    narrow = narrowed(schedule, 3)
    assert [step.width for step in schedule.steps] == [8]
    assert [step.width for step in narrow.steps] == [3, 3, 2]
    assert [len(step.targets) for step in narrow.steps] == [0, 0, 2]
    assert sum((step.inputs for step in narrow.steps), ()) == schedule.steps[0].inputs
    assert checked(narrow).slots == schedule.slots
    last = next(iter(masks(schedule, 8)))
    parts = np.concatenate(list(masks(narrow, 8)))
    assert (parts == last).all()


@pytest.mark.parametrize("text", ["arpg:2", "arpg:1"])
def test_groups_that_see_each_other_are_not_cut(text: str) -> None:
    schedule = compile_schedule(text, (3, 3))
    assert narrowed(schedule, 2) == schedule or max(step.width for step in narrowed(schedule, 2).steps) > 2
    assert max(step.width for step in narrowed(compile_schedule(f"{text},groups=causal", (3, 3)), 2).steps) <= 2


def test_inputs_whose_outputs_are_wanted_are_not_cut_off() -> None:
    inputs = (Input(Source.CONDITION, 0, 0, 0), Input(Source.CONDITION, 1, 0, 1), Input(Source.CONDITION, 2, 0, 2))
    for rows, widths in (((2,), [2, 1]), ((1,), [1, 2]), ((0,), [3])):
        step = Step(inputs, tuple(Target(row, 0) for row in rows), commit=3)
        narrow = checked(narrowed(Schedule("prompt", (1, 1), (step,), conditions=3), 2))
        assert [part.width for part in narrow.steps] == widths
        assert narrow.steps[-1].targets == (Target(rows[0] - 3 + widths[-1], 0),)


def test_an_engine_that_is_too_narrow_for_the_schedule_says_so(bundle_copy: Path) -> None:
    onnxruntime.build(bundle_copy, widths=[1])
    with (
        Runner.open(bundle_copy, threads=1) as narrow,
        pytest.raises(EngineError, match="built for widths 1: rebuild it"),
    ):
        narrow.generate([0], schedule="zipar:2")


@pytest.mark.parametrize("widths", [None, [2, 5, 24]])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ntp", ()),
        ("zipar:2", ()),
        ("par:4", ()),
        ("arpg:5", ()),
        ("arpg:5", (3,)),
        ("arpg:5,groups=causal", tuple(range(20))),
    ],
)
def test_shapes_are_those_of_the_plan(text: str, kept: tuple[int, ...], widths: list[int] | None) -> None:
    schedule = compile_schedule(text, (4, 6), kept)
    plan = make_plan(schedule, widths)
    assert list(step_shapes(schedule, widths)) == [(step.write_index, step.width, step.queries) for step in plan.steps]
