"""The schedule file: a JSON header and little-endian columns, readable without any library.

    8 bytes   magic "ARFSCHED"
    4 bytes   uint32, format version (1)
    4 bytes   uint32, length of the header
    header    UTF-8 JSON: specification, grid, conditions, zero_slots, queries (0 or 1), jacobi (where it is
              not 0), rows (where they start by themselves), and the numbers of steps, inputs, targets, retired, kept
    columns   the arrays of COLUMNS, one after the other, 4 bytes an entry

`*_end` columns hold, for each step, the end of its rows in the input, target or retire columns.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.errors import ScheduleError
from arforge.runner.json_file import parse_json, read_small
from arforge.runner.schedules.check import checked
from arforge.runner.schedules.schedule import Input, RowRules, Schedule, Source, Step, Target

MAGIC = b"ARFSCHED"
VERSION = 1
MAX_HEADER = 1 << 16
MAX_ROWS = 1 << 24
MAX_BYTES = 1 << 26
PREFIX = struct.Struct("<8sII")
# name, count in the header, type
COLUMNS = (
    ("input_end", "steps", "<i4"),
    ("target_end", "steps", "<i4"),
    ("retire_end", "steps", "<i4"),
    ("commit", "steps", "<i4"),
    ("guidance", "steps", "<f4"),
    ("source", "inputs", "<i4"),
    ("value", "inputs", "<i4"),
    ("position", "inputs", "<i4"),
    ("rank", "inputs", "<i4"),
    ("holes", "inputs", "<i4"),
    ("target_row", "targets", "<i4"),
    ("target_cell", "targets", "<i4"),
    ("retired_slot", "retired", "<i4"),
    ("kept_cell", "kept", "<i4"),
)
ROW_WORDS = {"first_row": ("published", "windowed"), "seed": ("published", "nearest"), "holes": ("published", "masked")}
COUNTS = ("steps", "inputs", "targets", "retired", "kept")


def dump(schedule: Schedule) -> bytes:
    inputs = [given for step in schedule.steps for given in step.inputs]
    targets = [target for step in schedule.steps for target in step.targets]
    retired = [slot for step in schedule.steps for slot in step.retire]
    columns = {
        "input_end": np.cumsum([step.width for step in schedule.steps]),
        "target_end": np.cumsum([len(step.targets) for step in schedule.steps]),
        "retire_end": np.cumsum([len(step.retire) for step in schedule.steps]),
        "commit": [step.commit for step in schedule.steps],
        "guidance": [step.guidance for step in schedule.steps],
        "source": [given.source for given in inputs],
        "value": [given.value for given in inputs],
        "position": [given.position for given in inputs],
        "rank": [given.rank for given in inputs],
        "holes": [given.holes for given in inputs],
        "target_row": [target.row for target in targets],
        "target_cell": [target.cell for target in targets],
        "retired_slot": retired,
        "kept_cell": schedule.kept,
    }
    sizes = (len(schedule.steps), len(inputs), len(targets), len(retired), len(schedule.kept))
    header = {
        "specification": schedule.specification,
        "grid": list(schedule.grid),
        "conditions": schedule.conditions,
        "zero_slots": schedule.zero_slots,
        "queries": int(schedule.queries),
        **({"jacobi": schedule.jacobi} if schedule.jacobi else {}),
        **({"rows": asdict(schedule.rows)} if schedule.rows else {}),
        **dict(zip(COUNTS, sizes, strict=True)),
    }
    text = json.dumps(header).encode()
    body = b"".join(np.asarray(columns[name], dtype=kind).tobytes() for name, _, kind in COLUMNS)
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text + body


def load(data: bytes, name: str) -> Schedule:
    """Read and check a schedule. Raises ScheduleError, naming `name`, for anything that is not as written."""
    if len(data) < PREFIX.size:
        raise ScheduleError(f"{name} is not a schedule: {len(data)} bytes")
    magic, version, length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ScheduleError(f"{name} is not a schedule: it does not start with {MAGIC!r}")
    if version != VERSION:
        raise ScheduleError(f"{name} has schedule format {version}; this arforge reads {VERSION}: update arforge")
    if length > min(MAX_HEADER, len(data) - PREFIX.size):
        raise ScheduleError(f"{name}: header of {length} bytes does not fit the file")
    start = PREFIX.size + length
    header = _header(data[PREFIX.size : start], name)
    expected = start + sum(header[count] * 4 for _, count, _ in COLUMNS)
    if expected != len(data):
        raise ScheduleError(f"{name} has {len(data)} bytes, its header asks for {expected}")
    columns: dict[str, NDArray[Any]] = {}
    for column, count, kind in COLUMNS:
        columns[column] = np.frombuffer(data, dtype=kind, count=header[count], offset=start)
        start += header[count] * 4
    return checked(_assemble(header, columns, name))


def read(path: Path) -> Schedule:
    """The schedule in a file of at most MAX_BYTES. Raises ScheduleError as `load` does."""
    return load(read_small(path, MAX_BYTES, ScheduleError), path.name)


def _header(text: bytes, name: str) -> dict[str, Any]:
    header = parse_json(text, f"{name}: the header", ScheduleError)
    if not isinstance(header, dict) or not isinstance(header.get("specification"), str):
        raise ScheduleError(f"{name}: header lacks a specification")
    grid = header.get("grid")
    if not (isinstance(grid, list) and len(grid) == 2):
        raise ScheduleError(f"{name}: grid must be [rows, columns]")
    numbers = [*grid, *(header.get(key) for key in ("conditions", "zero_slots", "queries", *COUNTS))]
    if any(type(number) is not int or not 0 <= number <= MAX_ROWS for number in numbers):
        raise ScheduleError(f"{name}: header has a size that is missing or out of range")
    if type(header.setdefault("jacobi", 0)) is not int or not 0 <= header["jacobi"] <= MAX_ROWS:
        raise ScheduleError(f"{name}: jacobi must be a whole number of inputs, not {header['jacobi']!r}")
    if header["queries"] > 1:
        raise ScheduleError(f"{name}: queries must be 0 or 1, not {header['queries']}")
    header["rows"] = _rules(header["rows"], name) if "rows" in header else None
    return header


def _rules(given: Any, name: str) -> RowRules:
    names = {rule.name for rule in fields(RowRules)}
    if not isinstance(given, dict) or set(given) != names:
        raise ScheduleError(f"{name}: rows must have {', '.join(sorted(names))}")
    numbers = [given["window"], given["cfg_interval"], 0 if given["row_end"] is None else given["row_end"]]
    if any(type(number) is not int or not -1 <= number <= MAX_ROWS for number in numbers) or numbers[2] < 0:
        raise ScheduleError(f"{name}: rows have a number that is out of range")
    for rule, words in ROW_WORDS.items():
        if given[rule] not in words:
            raise ScheduleError(f"{name}: rows have {rule} {given[rule]!r}: use one of {', '.join(words)}")
    return RowRules(**given)


def _assemble(header: dict[str, Any], columns: dict[str, NDArray[Any]], name: str) -> Schedule:
    for column, total in (("input_end", "inputs"), ("target_end", "targets"), ("retire_end", "retired")):
        ends = np.concatenate([[0], columns[column]])
        if (np.diff(ends) < 0).any() or ends[-1] != header[total]:
            raise ScheduleError(f"{name}: column {column} does not cover its rows in order")
    if not np.isin(columns["source"], list(Source)).all():
        raise ScheduleError(f"{name}: unknown kind of source")
    lists = {column: array.tolist() for column, array in columns.items()}
    facts = zip(*(lists[column] for column in ("source", "value", "position", "rank", "holes")), strict=True)
    inputs = [Input(Source(source), *rest) for source, *rest in facts]
    targets = [Target(*pair) for pair in zip(lists["target_row"], lists["target_cell"], strict=True)]
    steps = []
    first_input = first_target = first_retired = 0
    for index, (input_end, target_end, retire_end) in enumerate(
        zip(lists["input_end"], lists["target_end"], lists["retire_end"], strict=True)
    ):
        steps.append(
            Step(
                inputs=tuple(inputs[first_input:input_end]),
                targets=tuple(targets[first_target:target_end]),
                commit=lists["commit"][index],
                retire=tuple(lists["retired_slot"][first_retired:retire_end]),
                guidance=lists["guidance"][index],
            )
        )
        first_input, first_target, first_retired = input_end, target_end, retire_end
    return Schedule(
        specification=header["specification"],
        grid=(header["grid"][0], header["grid"][1]),
        steps=tuple(steps),
        conditions=header["conditions"],
        zero_slots=header["zero_slots"],
        queries=bool(header["queries"]),
        kept=tuple(lists["kept_cell"]),
        jacobi=header["jacobi"],
        rows=header["rows"],
    )
