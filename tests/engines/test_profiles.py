from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arforge.engines.profiles import Profile, default_widths, plan_profiles, rounded, shapes, used
from arforge.runner import EngineError, ScheduleError, compile_schedule, open_bundle
from arforge.runner.bundle import Bundle
from arforge.runner.plan import make_plan
from arforge.runner.schedules.random_order import random_order
from arforge.runner.table_graph import TableSizes


def test_widths_are_rounded_up_by_at_most_a_half_or_to_powers_of_two() -> None:
    assert [rounded(n, halves=True) for n in range(1, 18)] == [1, 2, 3, 4, 6, 6, 8, 8, *[12] * 4, *[16] * 4, 24]
    assert [rounded(n, halves=False) for n in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]


def test_the_widest_is_not_padded() -> None:
    assert default_widths({1, 5, 7, 13}, halves=True) == (1, 6, 8, 13)
    assert default_widths({28, 3}, halves=False) == (4, 28)


@pytest.mark.parametrize("text", ["ntp", "zipar:4", "zipar:2", "zipar:3,holes=masked"])
@pytest.mark.parametrize("widths", [[], [8], [1, 8]])
def test_every_step_has_its_profile_and_fits_the_cache(bundle: Path, text: str, widths: list[int]) -> None:
    opened = open_bundle(bundle)
    found = plan_profiles(opened, [text], [1, 3], widths)
    plan = make_plan(opened.schedule(text), found.widths)
    wanted = {Profile(images, step.width, step.queries) for step in plan.steps for images in (1, 3)}
    assert wanted == set(found.profiles)
    assert all(step.write_index + step.width <= found.slots for step in plan.steps)
    assert found.slots % 8 == 0
    assert found.slots - plan.slots < 8


@pytest.mark.parametrize("steps", range(1, 25, 4))
def test_random_order_pairs_widths_with_queries(arpg_bundle: Path, steps: int) -> None:
    opened = open_bundle(arpg_bundle)
    found = plan_profiles(opened, [f"arpg:{steps}"], [1], [], known=False)
    plan = make_plan(opened.schedule(f"arpg:{steps}"), found.widths)
    assert {(p.width, p.queries) for p in found.profiles} == {(s.width, s.queries) for s in plan.steps}
    assert found.known is None


@pytest.mark.parametrize("widths", [[], [4, 24]])
@pytest.mark.parametrize(
    "name", [*(f"arpg:{steps}" for steps in (1, 2, 5, 11, 24)), "arpg:7,ratio=cosine", "arpg:6,groups=causal"]
)
def test_any_number_of_known_cells_has_its_profiles_and_fits_the_cache(
    arpg_bundle: Path, name: str, widths: list[int]
) -> None:
    opened = open_bundle(arpg_bundle)
    found = plan_profiles(opened, [name], [2], widths)
    cells, kinds = random_order(opened.model.cells, 3), {(p.width, p.queries) for p in found.profiles}
    assert found.known is not None
    needed = set(make_plan(opened.schedule(name), found.widths).kinds)
    for count in range(1, opened.model.cells):
        plan = make_plan(opened.schedule(name, tuple(sorted(cells[:count]))), found.widths)
        assert plan.kinds <= kinds
        assert plan.slots <= found.slots
        assert found.known.hold(TableSizes.of(plan))
        needed |= plan.kinds
    assert kinds == needed  # and no others


def test_known_cells_can_be_left_out_where_there_are_any(arpg_bundle: Path, bundle: Path) -> None:
    opened = open_bundle(arpg_bundle)
    whole, without = (plan_profiles(opened, ["arpg:5"], [1], [], known=known) for known in (True, False))
    assert len(without.profiles) < len(whole.profiles) < 4 * len(without.profiles)
    assert without.slots < whole.slots
    with pytest.raises(EngineError, match="none of these schedules can start from known cells: leave --no-known out"):
        plan_profiles(open_bundle(bundle), [], [1], [], known=False)
    many = list(range(1, 40))
    with pytest.raises(EngineError, match=r"profiles are more than 256: .*, or leave known cells out with --no-known"):
        plan_profiles(opened, ["arpg:5"], many, [])


def test_64_growing_groups_need_a_dozen_profiles() -> None:
    schedule = compile_schedule("arpg:64", (16, 16))
    widths = default_widths(used([schedule]), halves=False)
    assert len({(step.width, step.queries) for step in make_plan(schedule, widths).steps}) <= 12


@pytest.mark.parametrize(
    ("asked", "passes"), [([], (65,)), ([16, 4, 16], (4, 16))]
)  # by the rule 128, but ONNX Runtime's rotary operator takes no more than there are positions
def test_prompts_pass_at_the_smallest_batch_and_stand_before_the_image(
    text_bundle: Path, asked: list[int], passes: tuple[int, ...]
) -> None:
    opened = open_bundle(text_bundle)
    found = plan_profiles(opened, ["zipar:4"], [4, 2], [1, 4], asked)
    assert found.prefill_widths == passes
    assert {p for p in found.profiles if p.condition > 1} == {Profile(2, width, 0, 119) for width in passes}
    steps = {Profile(images, width, 0, 1) for images in (2, 4) for width in (1, 4)}
    assert {p for p in found.profiles if p.condition == 1} == steps
    plan = make_plan(opened.schedule("zipar:4"), found.widths, prompt_slots=119)
    assert 0 <= found.slots - plan.slots < 8
    given = shapes(opened, Profile(2, 4, 0, 119), found.slots)
    assert given["condition"] == (4, 119, 64)
    assert given["mask"] == (4, 1, 4, found.slots)


def test_a_wide_pass_needs_slots_of_its_own(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    short = replace(opened, model=replace(opened.model, condition=replace(opened.model.condition, slots=9)))
    assert plan_profiles(short, ["ntp"], [1], []).prefill_widths == (8,)
    assert plan_profiles(short, ["ntp"], [1], []).slots == 72
    tall = replace(short, model=replace(short.model, position_rows=1000))
    assert plan_profiles(tall, ["ntp"], [1], [], [128]).slots == 128
    whole = replace(opened, model=replace(opened.model, position_rows=1000))
    assert plan_profiles(whole, [], [1], []).prefill_widths == (128,)


def test_what_no_tensor_can_hold_is_refused(text_bundle: Path, bundle: Path) -> None:
    opened = open_bundle(text_bundle)

    def of_slots(slots: int) -> Bundle:
        return replace(opened, model=replace(opened.model, condition=replace(opened.model.condition, slots=slots)))

    assert plan_profiles(of_slots(1_000_000), ["ntp"], [1], []).slots == 1_000_128
    with pytest.raises(EngineError, match=r"\[2, 4, 100000064, 16\] \(prompts have up to 100000000 tokens\)"):
        plan_profiles(of_slots(100_000_000), ["ntp"], [1], [])
    with pytest.raises(EngineError, match=r"would be \[.*, more than the 2147483647 numbers that a TensorRT tensor"):
        plan_profiles(of_slots(2**62), ["ntp"], [1], [])
    with pytest.raises(EngineError, match=r"key_cache_0 would be \[[^(]*: build for fewer --images"):
        plan_profiles(open_bundle(bundle), ["ntp"], [1_000_000], [])


def test_all_stored_schedules_are_the_default(bundle: Path) -> None:
    opened = open_bundle(bundle)
    stored = opened.specifications
    assert plan_profiles(opened, [], [1], []) == plan_profiles(opened, stored, [1], [])


def test_shapes_follow_the_step_graph(arpg_bundle: Path) -> None:
    opened = open_bundle(arpg_bundle)
    found = shapes(opened, Profile(images=2, width=3, queries=5), slots=40)
    assert found["tokens"] == (4, 3)
    assert found["mask"] == (1, 1, 3, 40)
    assert found["uniforms"] == (2, 5)
    assert found["query_positions"] == (4, 5)
    assert found["value_cache_2"] == (4, 4, 40, 16)
    assert len([name for name in found if "cache" in name]) == 2 * opened.model.caches


def test_wishes_that_do_not_fit_are_refused(bundle: Path, text_bundle: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(EngineError, match=r"schedule zipar:2 needs steps of 5, .* asked for is 4: add --width 5"):
        plan_profiles(opened, [], [1], [2, 4])
    with pytest.raises(EngineError, match=r"images \[0\] must all be at least 1"):
        plan_profiles(opened, [], [0], [])
    with pytest.raises(EngineError, match=r"widths \[-1\] must all be at least 1"):
        plan_profiles(opened, [], [1], [-1])
    with pytest.raises(EngineError, match="llamagen model takes classes, not prompts: leave --prefill-width out"):
        plan_profiles(opened, [], [1], [], [8])
    with pytest.raises(ScheduleError, match="decodes in regions order, this model in raster order"):
        plan_profiles(opened, ["par:4"], [1], [])
    with pytest.raises(EngineError, match=r"prefill widths \[0\] must all be at least 1"):
        plan_profiles(open_bundle(text_bundle), [], [1], [], [0])
    with pytest.raises(EngineError, match="prefill width 66 is more than the model's 65 positions"):
        plan_profiles(open_bundle(text_bundle), [], [1], [], [66])
    with pytest.raises(EngineError, match="300 profiles are more than 256"):
        plan_profiles(opened, ["ntp"], range(1, 301), [])
