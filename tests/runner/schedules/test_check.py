from __future__ import annotations

import math
from dataclasses import replace

import pytest

from arforge.runner import Schedule, ScheduleError
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.schedule import Input, Source, Step, Target

CLASS = Input(Source.CONDITION, 0, position=0, rank=0)


def cell(index: int, **changes: int) -> Input:
    return Input(Source.CELL, index, position=1 + index, rank=1 + index)._replace(**changes)


FIRST = Step((CLASS,), (Target(0, 0),), commit=1)
SECOND = Step((cell(0),), (Target(0, 1),), commit=1)
THIRD = Step((cell(1),), (Target(0, 2),), commit=1)
SOUND = Schedule("sound", (1, 3), (FIRST, SECOND, THIRD), zero_slots=1)


def with_second(step: Step) -> Schedule:
    return replace(SOUND, steps=(FIRST, step, THIRD))


def test_a_sound_schedule_passes_as_it_is() -> None:
    assert checked(SOUND) is SOUND


def test_retiring_a_live_slot_once_is_sound() -> None:
    assert checked(with_second(replace(SECOND, retire=(1,)))).steps[1].retire == (1,)


BROKEN = {
    "read before write": (with_second(replace(SECOND, inputs=(cell(1),))), "reads cell 1, which no earlier"),
    "read of a cell of the same step": (with_second(replace(SECOND, inputs=(cell(0), cell(1)))), "reads cell 1"),
    "read outside the grid": (with_second(replace(SECOND, inputs=(cell(0, value=9),))), "reads cell 9"),
    "written twice": (with_second(replace(SECOND, targets=(Target(0, 0),))), "decides cell 0 again"),
    "never written": (replace(SOUND, steps=(FIRST, SECOND)), "1 cells are never decided"),
    "cell outside the grid": (with_second(replace(SECOND, targets=(Target(0, 3),))), "cell 3 outside the grid"),
    "negative cell": (with_second(replace(SECOND, targets=(Target(0, -1),))), "cell -1 outside the grid"),
    "target row out of range": (with_second(replace(SECOND, targets=(Target(1, 1),))), "output 1 of 1"),
    "negative target row": (with_second(replace(SECOND, targets=(Target(-1, 1),))), "output -1 of 1"),
    "one row sampled twice": (
        replace(SOUND, steps=(FIRST, replace(SECOND, targets=(Target(0, 1), Target(0, 2))))),
        "one output row twice",
    ),
    "retire of a free slot": (with_second(replace(SECOND, retire=(2,))), "retires slot 2, which is not live"),
    "retire of a zero slot": (with_second(replace(SECOND, retire=(0,))), "retires slot 0, which is not live"),
    "retire of a slot not kept": (
        replace(SOUND, steps=(replace(FIRST, commit=0), replace(SECOND, retire=(1,)), THIRD)),
        "retires slot 1",
    ),
    "retire twice": (with_second(replace(SECOND, retire=(1, 1))), "retires slot 1, which is not live"),
    "commit above the width": (with_second(replace(SECOND, commit=2)), "keeps 2 of 1 slots"),
    "negative commit": (with_second(replace(SECOND, commit=-1)), "keeps -1 of 1 slots"),
    "NaN guidance": (with_second(replace(SECOND, guidance=math.nan)), "guidance weight nan"),
    "infinite guidance": (with_second(replace(SECOND, guidance=math.inf)), "guidance weight inf"),
    "guidance above one": (with_second(replace(SECOND, guidance=1.5)), "guidance weight 1.5"),
    "negative guidance": (with_second(replace(SECOND, guidance=-0.5)), "guidance weight -0.5"),
    "position out of range": (with_second(replace(SECOND, inputs=(cell(0, position=5),))), r"position 5.*0\.\.4"),
    "negative position": (with_second(replace(SECOND, inputs=(cell(0, position=-1),))), "position -1"),
    "rank out of range": (with_second(replace(SECOND, inputs=(cell(0, rank=1 << 21),))), "rank 2097152"),
    "negative rank": (with_second(replace(SECOND, inputs=(cell(0, rank=-1),))), "rank -1 is outside"),
    "more holes than zero slots": (with_second(replace(SECOND, inputs=(cell(0, holes=2),))), "2 zero slots of 1"),
    "negative holes": (with_second(replace(SECOND, inputs=(cell(0, holes=-1),))), "-1 zero slots of 1"),
    "condition out of range": (
        with_second(replace(SECOND, inputs=(CLASS._replace(value=1),))),
        "reads condition token 1 of 1",
    ),
    "negative condition": (
        with_second(replace(SECOND, inputs=(CLASS._replace(value=-1),))),
        "condition token -1|token -1 is negative",
    ),
    "negative literal": (
        with_second(replace(SECOND, inputs=(Input(Source.SPECIAL, -3, 0, 0),))),
        "token -3 is negative",
    ),
    "step without inputs": (with_second(Step((), (), 0)), "has no inputs"),
    "no steps": (replace(SOUND, steps=()), "no steps"),
    "negative conditions": (replace(SOUND, conditions=-1), "negative sizes"),
    "negative zero slots": (replace(SOUND, zero_slots=-1), "negative sizes"),
    "too many zero slots": (replace(SOUND, zero_slots=1 << 30), "negative sizes|out of range"),
    "keeps a cell outside the grid": (replace(SOUND, kept=(6,)), "outside the grid"),
    "keeps a negative cell": (replace(SOUND, kept=(-1,)), "outside the grid"),
    "keeps a cell twice": (replace(SOUND, kept=(1, 1)), "keeps a cell twice"),
    "decides a kept cell": (replace(SOUND, kept=(0,)), "decides cell 0 again"),
    "empty grid": (replace(SOUND, grid=(0, 3)), "grid 0x3 is out of range"),
    "grid too large": (replace(SOUND, grid=(1 << 11, 1 << 11)), "grid 2048x2048 is out of range"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_schedule_is_refused_by_what_is_wrong(case: str) -> None:
    schedule, message = BROKEN[case]
    with pytest.raises(ScheduleError, match=message):
        checked(schedule)


def test_the_message_names_the_schedule_and_the_step() -> None:
    with pytest.raises(ScheduleError, match="^schedule sound, step 1: keeps 2 of 1 slots$"):
        checked(with_second(replace(SECOND, commit=2)))
