"""Schedules of grids whose rows end in a token, against their definitions, spelled out cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner import Schedule, ScheduleError, compile_schedule
from arforge.runner.schedules.file import dump, load
from arforge.runner.schedules.schedule import Input, Source
from arforge.runner.schedules.visibility import masks

grids = st.tuples(st.integers(1, 6), st.integers(1, 7))


def compiled(specification: str, grid: tuple[int, int], row_end: int = 0) -> Schedule:
    return compile_schedule(specification, grid, row_end=row_end)


def place(given: Input, width: int) -> int:
    """Where an input stands in the finished sequence, the condition at 0."""
    if given.source is Source.CONDITION:
        return 0
    if given.source is Source.CELL:
        return 1 + given.value + given.value // width
    return given.position  # of a row's end: checked below


@pytest.mark.parametrize(
    ("window", "steps", "widest"),
    [(49, 2304, 2), (20, 941, 3), (17, 800, 4), (16, 753, 4), (14, 659, 4), (11, 518, 5), (8, 377, 7)],
)
def test_step_counts_of_lumina_at_768(window: int, steps: int, widest: int) -> None:
    schedule = compiled(f"zipar:{window}", (48, 48))
    assert (len(schedule.steps), schedule.widths[-1]) == (steps, widest)


@pytest.mark.parametrize(("window", "steps", "widest"), [(8, 713, 13), (4, 357, 31), (91, 8100, 2)])
def test_step_counts_of_emu3_at_720(window: int, steps: int, widest: int) -> None:
    schedule = compiled(f"zipar:{window}", (90, 90))
    assert (len(schedule.steps), schedule.widths[-1]) == (steps, widest)


@given(grids)
def test_next_token_is_the_finished_sequence(grid: tuple[int, int]) -> None:
    """Every token but the last is fed once, in order; each cell is decided by the one before it."""
    height, width = grid
    schedule = compiled("ntp", grid)
    assert len(schedule.steps) == height * width
    fed = [given for step in schedule.steps for given in step.inputs]
    assert [given.position for given in fed] == list(range(height * (width + 1) - 1))
    assert [given.rank for given in fed] == [given.position for given in fed]
    for one in fed:
        assert one.position == place(one, width)
        assert (one.source is Source.SPECIAL) == (one.position % (width + 1) == 0 and one.position > 0)
    for cell, step in enumerate(schedule.steps):
        (target,) = step.targets
        assert target.cell == cell
        assert step.inputs[target.row].position == cell + cell // width
        assert target.row == step.width - 1


@given(grids, st.data())
def test_zipar_is_its_definition(grid: tuple[int, int], data: st.DataObject) -> None:
    height, width = grid
    window = data.draw(st.integers(2, width + 1))
    schedule = compiled(f"zipar:{window}", grid)
    assert len(schedule.steps) == width + (height - 1) * (window - 1)
    when = {target.cell: index for index, step in enumerate(schedule.steps) for target in step.targets}
    for row in range(height):
        for column in range(width):
            assert when[row * width + column] == row * (window - 1) + column
    written: set[int] = set()
    for step, mask, first in zip(schedule.steps, masks(schedule, schedule.slots), schedule.write_indices, strict=True):
        assert first == len(written)
        written |= {given.position for given in step.inputs}
        order = [given.position for done in schedule.steps for given in done.inputs][: len(written)]
        for row, one in enumerate(step.inputs):
            assert one.position == place(one, width)
            seen = {order[slot] for slot in np.flatnonzero(mask[row])}
            assert seen == {position for position in written if position <= one.position}
        for target in step.targets:  # each cell is decided by what stands directly before it
            assert step.inputs[target.row].position == target.cell + target.cell // width
    assert len(written) == height * (width + 1) - 1


@given(grids)
def test_the_widest_window_is_next_token(grid: tuple[int, int]) -> None:
    assert compiled(f"zipar:{grid[1] + 1}", grid).steps == compiled("ntp", grid).steps


def test_guidance_ends_where_asked() -> None:
    steps = compiled("ntp,cfg-interval=4", (3, 4)).steps
    assert [step.guidance for step in steps] == [1.0] * 6 + [0.0] * 6
    assert [step.guidance for step in compile_schedule("ntp,cfg-interval=4", (3, 4)).steps] == [1.0] * 6 + [0.0] * 6


def test_the_end_of_rows_is_the_special_token_asked_for() -> None:
    schedule = compiled("ntp", (2, 3), row_end=4)
    ends = [given for step in schedule.steps for given in step.inputs if given.source is Source.SPECIAL]
    assert [given.value for given in ends] == [4]
    assert load(dump(schedule), "a.schedule") == schedule


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("zipar:1", "window 1 does not fit a grid of 3x4 whose rows end in a token: use zipar:2 to zipar:5"),
        ("zipar:6", "use zipar:2 to zipar:5"),
        ("zipar:3,seed=nearest", "rows end in a token, which leaves nothing for seed to decide: leave it out"),
        ("zipar:3,holes=masked", "nothing for holes to decide"),
        ("ntp,cfg-interval=-2", "cfg-interval -2 is out of range"),
        ("par:2", "schedule 'par:2' knows no rows that end in a token"),
        ("arpg:4", "knows no rows that end in a token"),
    ],
)
def test_what_has_no_meaning_with_row_ends_is_refused(specification: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        compiled(specification, (3, 4))
