from __future__ import annotations

import json

from arforge.runner import Schedule, compile_schedule
from arforge.runner.schedules.schedule import Input, Source, Step, Target

CONDITION = Input(Source.CONDITION, 0, position=0, rank=0)
SCHEDULE = Schedule(
    "hand-made",
    grid=(1, 3),
    steps=(
        Step((CONDITION, Input(Source.SPECIAL, 7, 0, 0)), (), commit=1),
        Step((CONDITION,), (Target(0, 2),), commit=1),
        Step(
            (Input(Source.CELL, 2, 3, 3), Input(Source.CELL, 2, 3, 3, holes=1), Input(Source.CELL, 2, 3, 3)),
            (Target(0, 0), Target(2, 1)),
            commit=0,
            retire=(4,),
            guidance=0.5,
        ),
    ),
    zero_slots=4,
)


def test_slots_follow_what_each_step_keeps() -> None:
    assert SCHEDULE.write_indices == (4, 5, 6)
    assert SCHEDULE.slots == 9  # the last step writes three slots though it keeps none


def test_widths_are_distinct_and_ascending() -> None:
    assert SCHEDULE.widths == (1, 2, 3)


def test_order_lists_cells_as_they_are_decided() -> None:
    assert SCHEDULE.order == (2, 0, 1)
    assert SCHEDULE.cells == 3


def test_json_holds_every_column() -> None:
    found = json.loads(json.dumps(SCHEDULE.to_json()))
    assert found["grid"] == [1, 3]
    assert found["order"] == [2, 0, 1]
    assert (found["zero_slots"], found["slots"], found["conditions"]) == (4, 9, 1)
    assert found["steps"][0]["inputs"] == [
        {"condition": 0, "position": 0, "rank": 0, "holes": 0},
        {"special": 7, "position": 0, "rank": 0, "holes": 0},
    ]
    assert found["steps"][2] == {
        "inputs": [{"cell": 2, "position": 3, "rank": 3, "holes": holes} for holes in (0, 1, 0)],
        "targets": [0, 1],
        "rows": [0, 2],
        "commit": 0,
        "retire": [4],
        "guidance": 0.5,
    }


def test_json_of_zipar_decides_each_cell_in_the_step_of_the_paper() -> None:
    found = compile_schedule("zipar:2", (3, 4)).to_json()
    targets = [step["targets"] for step in found["steps"]]
    assert targets == [[0], [1], [2], [3], [4], [5], [6, 8], [7, 9], [10], [11]]
