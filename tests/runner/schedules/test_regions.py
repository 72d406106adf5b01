"""PAR's schedule against its paper's step counts and its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.regions import par, region_order
from arforge.runner.schedules.schedule import Source
from arforge.runner.schedules.specification import compile_schedule
from arforge.runner.schedules.visibility import masks

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([2, 3, 4]))


@pytest.mark.parametrize(
    ("text", "grid", "steps"), [("par:4", (24, 24), 147), ("par:16", (24, 24), 51), ("par:4", (16, 16), 67)]
)
def test_steps_are_those_of_the_paper(text: str, grid: tuple[int, int], steps: int) -> None:
    assert len(compile_schedule(text, grid).steps) == steps


def test_order_goes_by_the_place_inside_a_region_then_by_the_region() -> None:
    # regions of 2x3 on 4x6: their first cells, then the next of each
    assert region_order((4, 6), 4)[:8] == [0, 3, 12, 15, 1, 4, 13, 16]


@given(sizes)
def test_every_step_decides_the_same_place_of_every_region(size: tuple[int, int, int]) -> None:
    rows, columns, side = size
    grid, regions = (rows * side, columns * side), side * side
    schedule = checked(par("par", grid, regions))
    assert len(schedule.steps) == regions + rows * columns - 1
    assert schedule.specials == (regions - 1 if rows * columns > 1 else 0)
    for step in schedule.steps[regions:]:
        places = {(cell // grid[1] % rows, cell % grid[1] % columns) for _, cell in step.targets}
        assert len(step.targets) == regions
        assert len(places) == 1


@given(sizes)
def test_each_input_sees_its_own_group_and_all_before(size: tuple[int, int, int]) -> None:
    rows, columns, side = size
    schedule = par("par", (rows * side, columns * side), side * side)
    visible = 0
    for step, mask in zip(schedule.steps, masks(schedule, schedule.slots), strict=True):
        visible += step.commit
        assert (mask.sum(axis=1) == visible).all()
        assert mask[:, :visible].all()


def test_the_transition_feeds_the_last_cell_and_the_special_tokens() -> None:
    schedule = par("par:4", (4, 4), 4)
    transition = schedule.steps[4]
    assert [(given.source, given.value) for given in transition.inputs] == [
        (Source.CELL, 10),
        *((Source.SPECIAL, index) for index in range(3)),
    ]
    assert [given.position for given in transition.inputs] == [11, 0, 0, 0]
    assert [given.value for given in schedule.steps[5].inputs] == [target.cell for target in transition.targets]


@pytest.mark.parametrize(("regions", "grid"), [(5, (8, 8)), (4, (7, 8)), (16, (8, 6)), (1, (8, 8)), (-4, (8, 8))])
def test_regions_that_do_not_fit_are_refused(regions: int, grid: tuple[int, int]) -> None:
    with pytest.raises(ScheduleError, match="do not fit a grid of"):
        compile_schedule(f"par:{regions}", grid)
