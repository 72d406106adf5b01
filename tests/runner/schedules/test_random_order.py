"""ARPG's schedule: its order, its groups, its guidance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner.errors import ScheduleError
from arforge.runner.randomness import uniforms
from arforge.runner.schedules.random_order import group_sizes, random_order
from arforge.runner.schedules.schedule import Source
from arforge.runner.schedules.specification import compile_schedule
from arforge.runner.schedules.visibility import masks

RATIOS = ("arccos", "cosine")


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("cells", [1, 2, 3, 7, 16, 24, 64, 100, 256])
def test_groups_fill_the_grid_in_exactly_the_steps_asked_for(cells: int, ratio: str) -> None:
    for steps in range(1, cells + 1):
        sizes = group_sizes(cells, steps, ratio)
        assert len(sizes) == steps
        assert sum(sizes) == cells
        assert min(sizes) >= 1


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_schedules_of_any_grid_and_steps_are_sound(height: int, width: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, height * width))
    ratio = data.draw(st.sampled_from(RATIOS))
    seed = data.draw(st.integers(0, 2**63 - 1))
    schedule = compile_schedule(f"arpg:{steps},ratio={ratio},order={seed}", (height, width))
    assert len(schedule.steps) == steps
    assert list(schedule.order) == random_order(height * width, seed)
    assert schedule.queries


def test_the_largest_order_seed_is_taken() -> None:
    assert list(compile_schedule(f"arpg:2,order={2**63 - 1}", (3, 3)).order) == random_order(9, 2**63 - 1)
    with pytest.raises(ScheduleError, match="order seed 9223372036854775808 is out of range"):
        compile_schedule(f"arpg:2,order={2**63}", (3, 3))


def test_groups_grow_slowly_at_first_with_arccos_and_hardly_with_few_steps() -> None:
    assert group_sizes(256, 64, "arccos")[-1] > group_sizes(256, 64, "arccos")[0]
    assert group_sizes(256, 1, "arccos") == [256]
    # 256 cells in 2 steps: a third is left out of the first (acos(1/2) is 2/3 of a right angle)
    assert group_sizes(256, 2, "arccos") == [86, 170]
    assert group_sizes(256, 2, "cosine") == [75, 181]


def test_the_order_sorts_the_numbers_of_a_stream_of_its_own() -> None:
    order = random_order(64, 5)
    numbers = uniforms(np.array([5], dtype=np.uint64), 64, stream=1)[0]
    assert (np.diff(numbers[order]) >= 0).all()
    assert order != np.argsort(uniforms(np.array([5], dtype=np.uint64), 64)[0]).tolist()
    assert order != random_order(64, 6)


def test_each_step_feeds_what_the_last_decided_with_nothing_masked() -> None:
    schedule = compile_schedule("arpg:5", (4, 4))
    known = 0
    for index, (step, mask) in enumerate(zip(schedule.steps, masks(schedule, schedule.slots), strict=True)):
        known += step.width
        assert mask[:, :known].all()
        assert not mask[:, known:].any()
        if index:
            assert {given.source for given in step.inputs} == {Source.CELL}
            assert [given.value for given in step.inputs] == [t.cell for t in schedule.steps[index - 1].targets]


def test_guidance_grows_with_the_cells_decided_or_is_constant() -> None:
    linear = compile_schedule("arpg:4", (4, 4))
    done = np.cumsum([len(step.targets) for step in linear.steps])
    assert [step.guidance for step in linear.steps] == (done / 16).tolist()
    # a schedule that is compiled and one that is read from its file give the same scale
    assert all(step.guidance == np.float32(step.guidance) for step in compile_schedule("arpg:5", (3, 5)).steps)
    assert {step.guidance for step in compile_schedule("arpg:4,cfg=constant", (4, 4)).steps} == {1.0}


def test_groups_of_causal_order_see_what_came_before_them() -> None:
    schedule = compile_schedule("arpg:3,groups=causal", (4, 4))
    seen = np.concatenate(list(masks(schedule, schedule.slots)))
    assert (seen == np.tril(np.ones_like(seen))).all()
    assert schedule.order == compile_schedule("arpg:3", (4, 4)).order


def test_kept_cells_are_fed_first_and_see_what_came_before_them() -> None:
    kept = (2, 3, 7, 11, 12)
    schedule = compile_schedule("arpg:4,order=3", (4, 4), kept)
    first = schedule.steps[0]
    assert [given.value for given in first.inputs[1:]] == [cell for cell in random_order(16, 3) if cell in kept]
    assert list(schedule.order) == [cell for cell in random_order(16, 3) if cell not in kept]
    mask = next(masks(schedule, schedule.slots))
    assert (mask[:, :6] == np.tril(np.ones((6, 6)))).all()
    for step, mask in list(zip(schedule.steps, masks(schedule, schedule.slots), strict=True))[1:]:
        assert (mask == mask[0]).all()
        assert step.inputs[0].rank == 5


def test_nothing_is_left_to_decide_where_all_is_kept() -> None:
    with pytest.raises(ScheduleError, match="all 4 cells are kept"):
        compile_schedule("arpg:2", (2, 2), (0, 1, 2, 3))
    with pytest.raises(ScheduleError, match="outside the grid"):
        compile_schedule("arpg:2", (2, 2), (4,))


@pytest.mark.parametrize("text", ["arpg:0", "arpg:17", "arpg:4,order=-1"])
def test_numbers_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="do not fit a grid of 4x4: use arpg:1 to arpg:16|order seed -1"):
        compile_schedule(text, (4, 4))
