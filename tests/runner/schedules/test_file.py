from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arforge.runner import Schedule, ScheduleError, compile_schedule
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.file import COLUMNS, COUNTS, MAGIC, PREFIX, dump, load, read
from arforge.runner.schedules.schedule import Input, Source, Step, Target

SMALL = compile_schedule("zipar:2,cfg-interval=1", (4, 4))
BYTES = dump(SMALL)
LITERALS = Schedule(
    "hand-made",
    (1, 2),
    (
        Step((Input(Source.SPECIAL, 2**31 - 1, 0, 0), Input(Source.CONDITION, 1, 0, 0)), (Target(1, 1),), commit=1),
        Step((Input(Source.CELL, 1, 2, 2, 3),), (Target(0, 0),), 0, retire=(3,), guidance=0.25),
    ),
    conditions=2,
    zero_slots=3,
)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    _, _, length = PREFIX.unpack_from(data)
    end = PREFIX.size + length
    return json.loads(data[PREFIX.size : end]), data[end:]


def joined(header: object, body: bytes, version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(MAGIC, version, len(text)) + text + body


def with_header(**changes: object) -> bytes:
    header, body = parts(BYTES)
    return joined({**header, **changes}, body)


def with_column(column: str, row: int, value: float) -> bytes:
    """The small schedule with one entry of one column changed."""
    header, body = parts(BYTES)
    start = 0
    for name, count, kind in COLUMNS:
        if name == column:
            values = np.frombuffer(body, kind, header[count], start).copy()
            values[row] = value
            return joined(header, body[:start] + values.tobytes() + body[start + values.nbytes :])
        start += 4 * header[count]
    raise AssertionError(column)


@pytest.mark.parametrize(
    "schedule",
    [
        SMALL,
        LITERALS,
        compile_schedule("ntp", (3, 5)),
        compile_schedule("zipar:3,holes=masked", (5, 7)),
        compile_schedule("arpg:4", (3, 5), (2, 9, 14)),
    ],
    ids=lambda schedule: schedule.specification,
)
def test_a_schedule_comes_back_equal(schedule: Schedule, tmp_path: Path) -> None:
    path = tmp_path / "x.schedule"
    path.write_bytes(dump(schedule))
    assert read(path) == schedule


def test_the_layout_is_the_documented_one() -> None:
    header, body = parts(BYTES)
    assert BYTES[:8] == b"ARFSCHED"
    assert BYTES[8:12] == (1).to_bytes(4, "little")
    steps = len(SMALL.steps)
    assert (header["steps"], header["grid"], header["specification"]) == (steps, [4, 4], SMALL.specification)
    ends = np.frombuffer(body, "<i4", steps)
    np.testing.assert_array_equal(ends, np.cumsum([step.width for step in SMALL.steps]))
    guidance = np.frombuffer(body, "<f4", steps, offset=4 * 4 * steps)
    np.testing.assert_array_equal(guidance, [step.guidance for step in SMALL.steps])
    assert len(body) == sum(4 * header[count] for _, count, _ in COLUMNS)


@pytest.mark.parametrize("extra", [b"", b"\0", b"\0\0\0\0"], ids=["cut", "one more byte", "one more entry"])
def test_every_wrong_length_is_refused(extra: bytes) -> None:
    lengths = [len(BYTES)] if extra else range(len(BYTES))
    for length in lengths:
        with pytest.raises(ScheduleError, match="cut short|bytes|does not fit"):
            load(BYTES[:length] + extra, "x.schedule")


def test_another_magic_is_refused() -> None:
    with pytest.raises(ScheduleError, match="x.schedule is not a schedule: it does not start with"):
        load(b"ARFSCHEE" + BYTES[8:], "x.schedule")


def test_a_newer_version_asks_for_an_update() -> None:
    with pytest.raises(ScheduleError, match=r"schedule format 2.*update arforge"):
        load(joined(*parts(BYTES), version=2), "x.schedule")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("change", [1, -1, 1000])
def test_lying_counts_are_refused(count: str, change: int) -> None:
    value = parts(BYTES)[0][count] + change
    with pytest.raises(ScheduleError, match="its header asks for|missing or out of range"):
        load(with_header(**{count: value}), "x.schedule")


@pytest.mark.parametrize("key", ["conditions", "zero_slots", *COUNTS])
@pytest.mark.parametrize("value", [-1, 2**40, 10**400, 1.0, "1", None, True, [1]])
def test_sizes_that_are_no_small_whole_numbers_are_refused(key: str, value: object) -> None:
    with pytest.raises(ScheduleError, match="missing or out of range"):
        load(with_header(**{key: value}), "x.schedule")


@pytest.mark.parametrize("grid", [None, [4], [4, 4, 4], "44", {"a": 1, "b": 2}, 16])
def test_a_grid_that_is_no_pair_is_refused(grid: object) -> None:
    with pytest.raises(ScheduleError, match=r"grid must be \[rows, columns\]"):
        load(with_header(grid=grid), "x.schedule")


@pytest.mark.parametrize("grid", [[4, 5], [0, 0], [2**24, 2**24]])
def test_a_grid_that_the_steps_do_not_fill_is_refused(grid: list[int]) -> None:
    with pytest.raises(ScheduleError, match="never decided|out of range"):
        load(with_header(grid=grid), "x.schedule")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"steps = 3", "the header is not valid JSON"),
        (b"", "the header is not valid JSON"),
        (b'"\xff"', "the header is not valid JSON"),
        (b"[" * 60000, "the header is not valid JSON"),
        (b"9" * 5000, "the header is not valid JSON"),
        (b"[]", "lacks a specification"),
        (b"null", "lacks a specification"),
        (b'{"specification": 1}', "lacks a specification"),
    ],
    ids=["text", "empty", "not UTF-8", "deep", "huge number", "list", "null", "specification"],
)
def test_headers_that_are_no_table_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        load(joined(text, parts(BYTES)[1]), "x.schedule")


def test_a_header_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ScheduleError, match="header of 70000 bytes does not fit"):
        load(joined(b" " * 70000, b""), "x.schedule")


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("input_end", 2, 1, "input_end does not cover"),
        ("input_end", 0, -1, "input_end does not cover"),
        ("target_end", -1, 99, "target_end does not cover"),
        ("retire_end", 0, 2**31 - 1, "retire_end does not cover"),
        ("commit", 0, 7, "keeps 7 of 1"),
        ("guidance", 3, np.nan, "guidance weight nan"),
        ("guidance", 3, np.inf, "guidance weight inf"),
        ("source", 1, 3, "unknown kind of source"),
        ("source", 1, -1, "unknown kind of source"),
        ("value", 1, 15, "reads cell 15"),
        ("position", 1, 21, "position 21"),
        ("rank", 1, -5, "rank -5"),
        ("holes", 1, 2**31 - 1, "zero slots"),
        ("target_row", 0, 1, "output 1 of 1"),
        ("target_cell", 0, 16, "outside the grid"),
        ("retired_slot", 0, 0, "retires slot 0"),
    ],
)
def test_columns_that_break_a_rule_are_refused(column: str, row: int, value: float, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        load(with_column(column, row, value), "x.schedule")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@example([(len(BYTES) - 4, 255)])
def test_flipped_bytes_give_a_sound_schedule_or_a_schedule_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(BYTES)
    for place, bits in flips:
        data[place] ^= bits
    try:
        loaded = load(bytes(data), "x.schedule")
    except ScheduleError as error:
        assert str(error)
    else:
        assert checked(loaded) is loaded


@given(st.binary(max_size=200))
def test_random_bytes_behind_the_magic_are_refused(data: bytes) -> None:
    with pytest.raises(ScheduleError):
        load(MAGIC + data, "x.schedule")
