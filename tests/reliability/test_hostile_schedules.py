"""Schedules made to do harm, as files: the one checker refuses each before a runner plans memory for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arforge.runner import Schedule, ScheduleError, compile_schedule
from arforge.runner.schedules.check import MAX_CELLS, capacity
from arforge.runner.schedules.file import dump, load
from arforge.runner.schedules.schedule import Input, Source, Step, Target

pytestmark = pytest.mark.usefixtures("_little_memory")
CLASS = Input(Source.CONDITION, 0, position=0, rank=0)


def reads(cell: int) -> Input:
    return Input(Source.CELL, cell, position=1 + cell, rank=1 + cell)


def step(given: Input, cell: int, commit: int = 1, retire: tuple[int, ...] = ()) -> Step:
    return Step((given,), (Target(0, cell),), commit, retire)


FIRST, LAST = step(CLASS, 0), step(reads(1), 2)
SOUND = Schedule("sound", (1, 3), (FIRST, step(reads(0), 1), LAST))
WIDE = Step((reads(0),) * 20, (Target(0, 1),), commit=1)
FEEDING = Step((reads(0),) * 2, (), commit=2)
ATTACKS = {
    "reads a cell before it is written": (replace(SOUND, steps=(step(reads(0), 0), *SOUND.steps[1:])), "reads cell 0"),
    "reads what the same step writes": (replace(SOUND, steps=(FIRST, step(reads(1), 1), LAST)), "reads cell 1"),
    "writes a cell twice": (replace(SOUND, steps=(*SOUND.steps, step(reads(2), 2))), "decides cell 2 again"),
    "never writes a cell": (replace(SOUND, steps=SOUND.steps[:2]), "1 cells are never decided"),
    "retires a slot twice": (
        replace(SOUND, steps=(FIRST, step(reads(0), 1, retire=(0,)), step(reads(1), 2, retire=(0,)))),
        "retires slot 0, which is not live",
    ),
    "retires a slot of its own": (replace(SOUND, steps=(FIRST, step(reads(0), 1, retire=(1,)), LAST)), "slot 1, which"),
    "overruns the cache in one step": (replace(SOUND, steps=(FIRST, WIDE, LAST)), "uses 21 cache slots, more than"),
    "overruns the cache step by step": (replace(SOUND, steps=(FIRST, *(FEEDING,) * 4, *SOUND.steps[1:])), "9 cache sl"),
    "never ends": (replace(SOUND, steps=(FIRST, *(Step((reads(0),), (), 0),) * 9000, LAST)), "decides nothing and kee"),
    "claims many conditions": (replace(SOUND, conditions=MAX_CELLS + 1), "too many conditions"),
    "claims many zero slots": (replace(SOUND, zero_slots=7), "7 zero slots are out of range"),
    "sees zero slots that are not there": (
        replace(SOUND, steps=(step(CLASS._replace(holes=1), 0), *SOUND.steps[1:])),
        "sees 1 zero slots of 0",
    ),
    "asks for a rank beyond all": (replace(SOUND, steps=(step(CLASS._replace(rank=2**30), 0),)), "rank 1073741824"),
    "asks for a position beyond the table": (
        replace(SOUND, steps=(step(CLASS._replace(position=5), 0),)),
        "position 5",
    ),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_it_is_refused_when_it_is_read(case: str) -> None:
    schedule, message = ATTACKS[case]
    with pytest.raises(ScheduleError, match=message):
        load(dump(schedule), "hostile.schedule")


def test_what_the_attacks_start_from_is_sound() -> None:
    assert load(dump(SOUND), "sound.schedule") == SOUND
    assert capacity(SOUND) == 8


@pytest.mark.parametrize("text", ["ntp", "zipar:2", "zipar:8,holes=masked", "par:4", "par:16", "arpg:1", "arpg:64"])
@pytest.mark.parametrize("grid", [(8, 8), (16, 16)])
def test_real_schedules_stay_below_the_capacity(text: str, grid: tuple[int, int]) -> None:
    schedule = compile_schedule(text, grid)
    assert schedule.slots <= 0.75 * capacity(schedule)
