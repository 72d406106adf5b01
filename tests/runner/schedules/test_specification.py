from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arforge.runner import Schedule, ScheduleError, compile_schedule
from arforge.runner.schedules.specification import KINDS, parse, require_order, with_window


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ntp", "ntp"),
        (" ntp ", "ntp"),
        ("ntp,cfg-interval=-1", "ntp"),
        ("ntp,cfg-interval=007", "ntp,cfg-interval=7"),
        ("zipar:16", "zipar:16"),
        ("zipar:016", "zipar:16"),
        ("zipar:16,first-row=published,seed=published,holes=published", "zipar:16"),
        ("zipar:8,seed=nearest,first-row=windowed", "zipar:8,first-row=windowed,seed=nearest"),
        ("zipar:8,holes=masked,cfg-interval=3", "zipar:8,cfg-interval=3,holes=masked"),
        ("zipar:8,jacobi=16,holes=masked", "zipar:8,holes=masked,jacobi=16"),
        ("jacobi:auto,cfg-interval=4", "ntp,cfg-interval=4,jacobi=auto"),
        ("zipar:adaptive=04,holes=published", "zipar:adaptive=4"),
        ("zipar:adaptive=4,seed=nearest,cfg-interval=3", "zipar:adaptive=4,cfg-interval=3,seed=nearest"),
    ],
)
def test_the_canonical_form_drops_defaults_and_sorts(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown schedule ''.*known: ntp, zipar"),
        ("zipra:4", "unknown schedule 'zipra:4': did you mean 'zipar'.*known: ntp, zipar"),
        ("nothing-like-it", "unknown schedule 'nothing-like-it': known: ntp, zipar"),
        ("NTP", "unknown schedule 'NTP'"),
        ("zipar", "malformed: write it as zipar:WINDOW"),
        ("zipar,holes=masked", "malformed: write it as zipar:WINDOW"),
        ("ntp:3", "malformed: write it as ntp,"),
        ("zipar:", "needs a whole number, not ''"),
        ("zipar:four", "schedule zipar needs a whole number, not 'four'"),
        ("zipar:4.0", "whole number, not '4.0'"),
        ("zipar:4,hole=masked", "unknown option 'hole=masked' of schedule zipar: did you mean 'holes'"),
        ("zipar:4,holes", "unknown option 'holes' of schedule zipar"),
        ("zipar:4,", "unknown option '' of schedule zipar"),
        ("ntp,holes=masked", "unknown option 'holes=masked' of schedule ntp.*known: cfg-interval"),
        ("zipar:adaptive", "malformed: write it as zipar:adaptive=WINDOW"),
        ("zipar:adaptive:4", "schedule zipar needs a whole number, not 'adaptive:4'"),
        ("zipar:adaptive=", "schedule zipar:adaptive needs a whole number, not ''"),
        ("zipar:adaptve=4", "unknown schedule 'zipar:adaptve=4': did you mean 'zipar:adaptive'"),
        ("zipar=4", "malformed: write it as zipar:WINDOW"),
        ("jacobi=4", "unknown schedule 'jacobi=4'"),
        ("jacobi:Auto", "option jacobi needs a whole number, not 'Auto'"),
        ("zipar:8,jacobi=auto", "option jacobi needs a whole number, not 'auto'"),
        ("zipar:adaptive=4,jacobi=8", "unknown option 'jacobi=8' of schedule zipar:adaptive.*known: first-row"),
        ("zipar:4,holes=none", "option holes is one of published, masked, not 'none'"),
        ("zipar:4,seed=masked", "option seed is one of published, nearest"),
        ("ntp,cfg-interval=x", "option cfg-interval needs a whole number, not 'x'"),
        ("zipar:4,holes=masked,holes=masked", "gives option holes twice"),
        ("zipar:" + "9" * 5000, "whole number"),
    ],
)
def test_a_wrong_specification_says_what_would_be_valid(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["zipar:1_6", "zipar: 4", "zipar:４", "ntp,cfg-interval=1_0"])
def test_only_plain_digits_are_numbers(text: str) -> None:
    """What Python's int() takes beyond them no other reader of specifications would."""
    with pytest.raises(ScheduleError, match="whole number"):
        parse(text)


def test_a_cfg_interval_below_minus_one_is_refused() -> None:
    """-1 is off; smaller numbers would silently do the same under another name."""
    with pytest.raises(ScheduleError, match="cfg-interval"):
        compile_schedule("ntp,cfg-interval=-7", (2, 2))


@pytest.mark.parametrize("grid", [(0, 4), (4, 0), (-1, 4)])
def test_a_grid_without_cells_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ScheduleError, match=f"grid {grid[0]}x{grid[1]} is out of range: use 1 to"):
        compile_schedule("ntp", grid)


def test_a_grid_too_large_is_refused_at_once() -> None:
    with pytest.raises(ScheduleError, match="1048577x1 is out of range"):
        compile_schedule("ntp", (2**20 + 1, 1))


def test_a_compiled_schedule_carries_its_canonical_specification() -> None:
    schedule = compile_schedule("zipar:4,seed=nearest,holes=masked,first-row=published", (4, 6))
    assert isinstance(schedule, Schedule)
    assert schedule.specification == "zipar:4,holes=masked,seed=nearest"
    assert schedule.grid == (4, 6)


def test_options_reach_the_schedule() -> None:
    grid = (6, 6)
    base = compile_schedule("zipar:2", grid)
    for option in ("first-row=windowed", "seed=nearest", "holes=masked", "cfg-interval=3"):
        assert compile_schedule(f"zipar:2,{option}", grid).steps != base.steps, option


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["raster", "regions", "random"])
def test_an_order_takes_its_own_kinds_and_no_others(kind: str, order: str) -> None:
    text = kind if KINDS[kind].number is None else f"{kind}{KINDS[kind].mark}4"
    assert (order == "raster") is (KINDS[kind].order == order) or kind not in ("ntp", "zipar")
    if KINDS[kind].order == order:
        require_order(text, order)
    else:
        message = f"'{text}' decodes in {KINDS[kind].order} order, this model in {order} order: use one of"
        with pytest.raises(ScheduleError, match=message):
            require_order(text, order)


@given(st.text(max_size=40))
def test_any_text_parses_or_raises_a_schedule_error(text: str) -> None:
    try:
        parsed = parse(text)
    except ScheduleError as error:
        assert str(error)
    else:
        assert parse(str(parsed)) == parsed


@pytest.mark.parametrize("row_end", [None, 0])
def test_a_window_that_is_left_open_is_the_table_as_it_stands(row_end: int | None) -> None:
    found = compile_schedule("jacobi:auto", (3, 4), row_end=row_end)
    assert found.specification == "ntp,jacobi=auto"
    assert found == replace(compile_schedule("ntp", (3, 4), row_end=row_end), specification="ntp,jacobi=auto")


@pytest.mark.parametrize(
    ("text", "inputs", "expected"),
    [
        ("ntp,jacobi=auto", 1, "ntp"),
        ("jacobi:auto,cfg-interval=2", 5, "ntp,cfg-interval=2,jacobi=5"),
        ("zipar:4,seed=nearest,jacobi=7", 3, "zipar:4,jacobi=3,seed=nearest"),
    ],
)
def test_a_window_can_be_set(text: str, inputs: int, expected: str) -> None:
    assert with_window(text, inputs) == expected
