from __future__ import annotations

import numpy as np

from arforge.runner import Schedule
from arforge.runner.schedules.schedule import Input, Source, Step, Target
from arforge.runner.schedules.visibility import NEVER, Visibility, masks


def at(rank: int, holes: int = 0) -> Input:
    return Input(Source.CONDITION, 0, position=0, rank=rank, holes=holes)


def test_a_slot_is_seen_by_inputs_of_its_rank_and_above() -> None:
    state = Visibility(slots=6, zero_slots=0)
    mask = state.mask(Step((at(5), at(2), at(5)), (), commit=3), write_index=0)
    np.testing.assert_array_equal(
        mask, np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=bool)
    )
    later = state.mask(Step((at(3),), (), commit=1), write_index=3)
    np.testing.assert_array_equal(later, np.array([[0, 1, 0, 1, 0, 0]], dtype=bool))


def test_an_input_sees_as_many_zero_slots_as_it_has_holes() -> None:
    state = Visibility(slots=6, zero_slots=3)
    mask = state.mask(Step((at(1, holes=2), at(1, holes=0), at(1, holes=3)), (), commit=3), write_index=3)
    np.testing.assert_array_equal(mask[:, :3], np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool))


def test_a_retired_slot_is_hidden_from_the_step_that_retires_it() -> None:
    state = Visibility(slots=4, zero_slots=0)
    state.mask(Step((at(0), at(1)), (), commit=2), write_index=0)
    mask = state.mask(Step((at(9),), (), commit=1, retire=(0,)), write_index=2)
    np.testing.assert_array_equal(mask, np.array([[0, 1, 1, 0]], dtype=bool))
    assert state.slot_rank[0] == NEVER


def test_slots_that_a_step_does_not_keep_are_forgotten_after_it() -> None:
    state = Visibility(slots=4, zero_slots=0)
    own = state.mask(Step((at(0), at(0), at(0)), (), commit=1), write_index=0)
    assert own[:, :3].all()
    later = state.mask(Step((at(9),), (), commit=1), write_index=1)
    np.testing.assert_array_equal(later, np.array([[1, 1, 0, 0]], dtype=bool))


def test_masks_yields_one_mask_a_step_and_none_sees_spare_slots() -> None:
    first = Step((at(0),), (Target(0, 0),), commit=1)
    second = Step((Input(Source.CELL, 0, 1, 1),), (Target(0, 1),), commit=1)
    schedule = Schedule("hand-made", (1, 2), (first, second), zero_slots=1)
    found = list(masks(schedule, slots=7))
    assert [mask.shape for mask in found] == [(1, 7), (1, 7)]
    assert not any(mask[:, 3:].any() for mask in found)
