from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner import Schedule, ScheduleError, compile_schedule
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.schedule import Source
from arforge.runner.schedules.visibility import masks


@st.composite
def zipar_cases(draw: st.DrawFn) -> tuple[str, tuple[int, int], int]:
    grid = (draw(st.integers(1, 8)), draw(st.integers(1, 9)))
    window = draw(st.integers(1, grid[1]))
    options = [
        draw(st.sampled_from(["", ",first-row=windowed"])),
        draw(st.sampled_from(["", ",seed=nearest"])),
        draw(st.sampled_from(["", ",holes=masked"])),
        draw(st.sampled_from(["", ",cfg-interval=0", ",cfg-interval=5"])),
    ]
    return f"zipar:{window}{''.join(options)}", grid, window


def steps_of(schedule: Schedule) -> np.ndarray:
    """The step in which each cell is decided, [rows, columns]."""
    found = np.full(schedule.cells, -1)
    for index, step in enumerate(schedule.steps):
        for target in step.targets:
            found[target.cell] = index
    return found.reshape(schedule.grid)


@pytest.mark.parametrize(
    ("specification", "side", "steps"),
    [
        ("ntp", 24, 576),
        ("zipar:16", 24, 400),
        ("zipar:12", 24, 312),
        ("zipar:8", 24, 224),
        ("zipar:4", 24, 136),
        ("zipar:16,first-row=windowed", 24, 392),
        ("zipar:12,first-row=windowed", 24, 300),
        ("zipar:8,first-row=windowed", 24, 208),
        ("zipar:8", 16, 144),
        ("zipar:4", 16, 88),
    ],
)
def test_step_counts_of_the_paper(specification: str, side: int, steps: int) -> None:
    assert len(compile_schedule(specification, (side, side)).steps) == steps


@pytest.mark.parametrize(("window", "zero_slots"), [(16, 7), (12, 11), (8, 22), (4, 55)])
def test_unwritten_slots_that_the_published_cache_shows(window: int, zero_slots: int) -> None:
    assert compile_schedule(f"zipar:{window}", (24, 24)).zero_slots == zero_slots


@given(zipar_cases())
def test_every_zipar_schedule_is_sound_and_decides_each_cell_once(case: tuple[str, tuple[int, int], int]) -> None:
    specification, grid, _ = case
    schedule = compile_schedule(specification, grid)
    assert checked(schedule) is schedule
    assert sorted(schedule.order) == list(range(grid[0] * grid[1]))


@given(zipar_cases())
def test_rows_start_when_the_window_above_is_there_and_gain_one_cell_a_step(
    case: tuple[str, tuple[int, int], int],
) -> None:
    specification, grid, window = case
    steps = steps_of(compile_schedule(specification, grid))
    windowed = "windowed" in specification
    np.testing.assert_array_equal(np.diff(steps, axis=1), 1)
    for row in range(1, grid[0]):
        wait = grid[1] if row == 1 and not windowed else window
        assert steps[row, 0] == steps[row - 1, wait - 1] + 1
        for column in range(grid[1]):
            assert steps[row, column] > steps[row - 1, min(column + window, grid[1]) - 1]


@given(zipar_cases())
def test_step_count_follows_the_formula(case: tuple[str, tuple[int, int], int]) -> None:
    specification, (height, width), window = case
    schedule = compile_schedule(specification, (height, width))
    if height == 1:
        assert len(schedule.steps) == width
    elif "windowed" in specification:
        assert len(schedule.steps) == width + (height - 1) * window
    else:
        assert len(schedule.steps) == 2 * width + (height - 2) * window


@given(zipar_cases())
def test_masked_holes_need_no_zero_slots(case: tuple[str, tuple[int, int], int]) -> None:
    specification, grid, _ = case
    schedule = compile_schedule(specification, grid)
    if "masked" in specification:
        assert schedule.zero_slots == 0
        assert all(read.holes == 0 for step in schedule.steps for read in step.inputs)
    else:
        assert schedule.zero_slots == max(read.holes for step in schedule.steps for read in step.inputs)


@given(zipar_cases())
def test_masks_show_the_raster_causal_cache_of_the_published_code(
    case: tuple[str, tuple[int, int], int],
) -> None:
    """Each raster place before an input is seen once: as its latest written slot, or else as one zero slot."""
    specification, grid, _ = case
    schedule = compile_schedule(specification, grid)
    place_of: dict[int, int] = {}  # slot -> raster place that it was written for
    slot_of: dict[int, int] = {}  # raster place -> its latest slot
    steps = zip(schedule.steps, schedule.write_indices, masks(schedule, schedule.slots + 3), strict=True)
    for step, first, mask in steps:
        for offset, read in enumerate(step.inputs):
            place_of[first + offset] = read.position
            slot_of[read.position] = first + offset
        for read, row in zip(step.inputs, mask, strict=True):
            seen = np.flatnonzero(row[schedule.zero_slots :]) + schedule.zero_slots
            written = [place for place in range(read.position + 1) if place in slot_of]
            assert sorted(seen) == sorted(slot_of[place] for place in written)
            assert sorted(place_of[slot] for slot in seen) == written
            holes = 0 if "masked" in specification else read.position + 1 - len(written)
            assert row[: schedule.zero_slots].sum() == holes


@given(zipar_cases())
def test_rows_are_fed_the_cell_before_or_a_stand_in_that_the_true_token_replaces(
    case: tuple[str, tuple[int, int], int],
) -> None:
    specification, grid, _ = case
    schedule = compile_schedule(specification, grid)
    stood_in: dict[int, int] = {}  # cell -> slot of its stand-in
    for step, first in zip(schedule.steps, schedule.write_indices, strict=True):
        targets = {target.row: target.cell for target in step.targets}
        retired = set(step.retire)
        for offset, read in enumerate(step.inputs):
            if read.source is Source.CONDITION:
                assert (read.value, read.position, targets[offset]) == (0, 0, 0)
                continue
            fed = read.position - 1
            if offset not in targets:
                assert read.value == fed
                retired.remove(stood_in.pop(fed))
            elif read.value != fed:
                assert fed == targets[offset] - 1
                assert fed % grid[1] == grid[1] - 1
                stood_in[fed] = first + offset
            else:
                assert fed == targets[offset] - 1
        assert not retired
    assert not stood_in


def test_published_stand_in_is_the_latest_token_two_rows_up() -> None:
    schedule = compile_schedule("zipar:3", (4, 8))
    assert first_input(schedule, cell=2 * 8) == 0 * 8 + 7
    assert first_input(schedule, cell=3 * 8) == 1 * 8 + 5  # row 1 has 6 cells when row 3 starts


def test_nearest_stand_in_is_the_closest_decided_cell() -> None:
    schedule = compile_schedule("zipar:3,seed=nearest", (4, 8))
    assert first_input(schedule, cell=2 * 8) == 0 * 8 + 7
    assert first_input(schedule, cell=3 * 8) == 0 * 8 + 7  # two up, nearer than (1, 5)
    wide = compile_schedule("zipar:6,seed=nearest", (4, 8))
    assert first_input(wide, cell=2 * 8) == 0 * 8 + 7
    assert first_input(compile_schedule("zipar:7,seed=nearest,first-row=windowed", (2, 8)), cell=8) == 6


def first_input(schedule: Schedule, cell: int) -> int:
    """The cell whose token the step that decides `cell` feeds for it."""
    for step in schedule.steps:
        for target in step.targets:
            if target.cell == cell:
                return step.inputs[target.row].value
    raise AssertionError(cell)


@given(st.integers(1, 6), st.integers(1, 6))
def test_next_token_feeds_each_cell_to_decide_the_next(height: int, width: int) -> None:
    schedule = compile_schedule("ntp", (height, width))
    assert schedule.order == tuple(range(height * width))
    assert schedule.zero_slots == 0
    assert schedule.widths == (1,)
    for cell, (step, mask) in enumerate(zip(schedule.steps, masks(schedule, schedule.slots), strict=True)):
        assert step.inputs[0].position == cell
        np.testing.assert_array_equal(mask[0], np.arange(schedule.slots) <= cell)


@pytest.mark.parametrize("window", [0, 9, -1])
def test_a_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(ScheduleError, match=rf"window {window} does not fit.*6x8.*zipar:1 to zipar:8"):
        compile_schedule(f"zipar:{window}", (6, 8))


def test_guidance_weights_of_cfg_interval() -> None:
    plain = compile_schedule("ntp,cfg-interval=2", (1, 6))
    assert [step.guidance for step in plain.steps] == [1, 1, 1, 1, 0, 0]
    fast = compile_schedule("zipar:2,cfg-interval=2", (3, 4))
    # Row 0 has decode indices -1, 0, 1, 2; then 0, 1, 2, 4, 6, 7 cells of later rows stand before each step.
    assert [step.guidance for step in fast.steps] == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
