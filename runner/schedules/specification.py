"""Schedule specifications: `ntp`, `zipar:16`, `zipar:16,first-row=windowed`. Compiles them to schedules."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules import random_order, raster, regions, row_ends
from arforge.runner.schedules.check import MAX_CELLS, checked
from arforge.runner.schedules.schedule import Schedule

INTEGER = None  # an option that takes a whole number rather than one of a few words
AUTO = "auto"
INTEGER_OR_AUTO = (AUTO,)  # a whole number too: how far to run ahead may be left to the runner


@dataclass(frozen=True)
class Kind:
    """One kind of schedules: its builder, its number (the part after the colon), its options with defaults."""

    build: Callable[..., Schedule]
    number: str | None  # the builder's name for it; None where the kind takes none
    options: Mapping[str, tuple[tuple[str, ...] | None, str]]
    order: str  # of cells that a model must have been trained for
    keeps: bool = False  # whether it can start from cells that are known
    row_ends: Callable[..., Schedule] | None = None  # builds for models whose rows end in a token; options as there
    mark: str = ":"  # between the kind and its number
    table: str | None = None  # the kind whose tables its schedules hold, where that is another


RASTER = {"cfg-interval": (INTEGER, "-1"), "jacobi": (INTEGER, "0")}
NEXT_TOKEN = {**RASTER, "jacobi": (INTEGER_OR_AUTO, "0")}
ROW_END_OPTIONS = ("cfg-interval", "jacobi")
ZIPAR = {
    "first-row": (("published", "windowed"), "published"),
    "seed": (("published", "nearest"), "published"),
    "holes": (("published", "masked"), "published"),
}
KINDS = {
    "ntp": Kind(raster.next_token, None, NEXT_TOKEN, "raster", row_ends=row_ends.next_token),
    "zipar": Kind(raster.zipar, "window", {**ZIPAR, **RASTER}, "raster", row_ends=row_ends.zipar),
    "zipar:adaptive": Kind(
        raster.adaptive_zipar,
        "window",
        {**ZIPAR, "cfg-interval": RASTER["cfg-interval"]},
        "raster",
        row_ends=row_ends.adaptive_zipar,
        mark="=",
        table="zipar",
    ),
    "par": Kind(regions.par, "regions", {}, "regions"),
    "arpg": Kind(
        random_order.arpg,
        "steps",
        {
            "ratio": (("arccos", "cosine"), "arccos"),
            "cfg": (("linear", "constant"), "linear"),
            "order": (INTEGER, "0"),
            "groups": (("published", "causal"), "published"),
        },
        "random",
        keeps=True,
    ),
}


@dataclass(frozen=True)
class Specification:
    kind: str
    number: int | None
    options: tuple[tuple[str, str], ...]  # only those that differ from the default, sorted

    def __str__(self) -> str:
        head = self.kind if self.number is None else f"{self.kind}{KINDS[self.kind].mark}{self.number}"
        return ",".join([head, *(f"{name}={value}" for name, value in self.options)])


def parse(text: str) -> Specification:
    """Parse a specification. Raises ScheduleError that names what is unknown and what would be valid."""
    if not isinstance(text, str):
        raise ScheduleError(f"schedule {text!r} is no text: use one such as 'ntp'")
    head, *options = text.strip().split(",")
    name, mark, number = _parts(head)
    if name == "jacobi" and mark == ":":
        return parse(",".join(["ntp", f"jacobi={number}", *options]))
    kind = KINDS.get(name)
    if kind is None:
        raise ScheduleError(f"unknown schedule {text!r}: {_suggest(name, KINDS)}")
    if mark != ("" if kind.number is None else kind.mark):
        form = name if kind.number is None else f"{name}{kind.mark}{kind.number.upper()}"
        raise ScheduleError(f"schedule {text!r} is malformed: write it as {form}, options after commas")
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in kind.options or not equals:
            raise ScheduleError(f"unknown option {option!r} of schedule {name}: {_suggest(key, kind.options)}")
        if key in given:
            raise ScheduleError(f"schedule {text!r} gives option {key} twice")
        words, _ = kind.options[key]
        whole = words is INTEGER or (words is INTEGER_OR_AUTO and value != AUTO)
        given[key] = str(_integer(value, f"option {key}")) if whole else _word(key, value, words or ())
    kept = sorted((key, value) for key, value in given.items() if value != kind.options[key][1])
    return Specification(name, _integer(number, f"schedule {name}") if mark else None, tuple(kept))


def as_it_stands(text: str) -> str:
    """The specification of the same table of steps, followed as it stands: without drafts, without rows on trial."""
    parsed = parse(text)
    options = tuple(option for option in parsed.options if option[0] != "jacobi")
    return str(replace(parsed, kind=KINDS[parsed.kind].table or parsed.kind, options=options))


def leaves_window_open(text: str) -> bool:
    """Whether the runner is to find how far it runs ahead, by what its engine was found to gain."""
    return ("jacobi", AUTO) in parse(text).options


def with_window(text: str, inputs: int) -> str:
    """The same specification with so many inputs a call, 1 being none ahead."""
    parsed = parse(text)
    others = [option for option in parsed.options if option[0] != "jacobi"]
    ahead = [("jacobi", str(inputs))] if inputs > 1 else []
    return str(replace(parsed, options=tuple(sorted([*others, *ahead]))))


def compile_schedule(
    text: str, grid: tuple[int, int], kept: tuple[int, ...] = (), row_end: int | None = None
) -> Schedule:
    """Compile and check the schedule of a specification for a grid of (rows, columns).

    `kept`: cells that are known and stay as they are. `row_end`: the index of the special token that ends
    each row of the model's grid, None where there is none. Raises ScheduleError for an unknown kind or option, numbers
    that do not fit the grid, or kept cells where the kind decodes in an order of its own.
    """
    try:
        rows, columns = (operator.index(side) for side in grid)
    except (TypeError, ValueError):
        raise ScheduleError(f"grid {grid!r} is no pair of rows and columns, such as (24, 24)") from None
    if min(rows, columns) < 1 or rows * columns > MAX_CELLS:
        raise ScheduleError(f"grid {rows}x{columns} is out of range: use 1 to {MAX_CELLS} cells")
    if kept:
        require_keeping(text)
    return _compiled(parse(text), (rows, columns), tuple(kept), row_end)


@lru_cache(maxsize=64)
def _compiled(
    specification: Specification, grid: tuple[int, int], kept: tuple[int, ...], row_end: int | None
) -> Schedule:
    kind = KINDS[specification.kind]
    build = kind.build if row_end is None else _row_ends_builder(specification, kind)
    arguments: dict[str, int | str | tuple[int, ...]] = {} if row_end is None else {"row_end": row_end}
    if kind.number is not None:
        assert specification.number is not None
        arguments[kind.number] = specification.number
    for key, value in specification.options:
        arguments[key.replace("-", "_")] = _argument(kind.options[key][0], value)
    if kept:
        arguments["kept"] = kept
    return checked(build(str(specification), grid, **arguments))


def _argument(words: tuple[str, ...] | None, value: str) -> int | str:
    """What a builder is given. A runner that is left to find how far it runs ahead starts from the table as it is."""
    if words is INTEGER_OR_AUTO:
        return 0 if value == AUTO else int(value)
    return int(value) if words is INTEGER else value


def _row_ends_builder(specification: Specification, kind: Kind) -> Callable[..., Schedule]:
    """Raises ScheduleError for a kind, or an option, that has no meaning where rows end in a token."""
    if kind.row_ends is None:
        raise ScheduleError(f"schedule {str(specification)!r} knows no rows that end in a token, as this model's do")
    for key, _ in specification.options:
        if key not in ROW_END_OPTIONS:
            raise ScheduleError(
                f"schedule {str(specification)!r}: this model's rows end in a token, which leaves nothing for {key} "
                "to decide: leave it out"
            )
    return kind.row_ends


def require_order(text: str, order: str) -> None:
    """Raise ScheduleError unless this kind of schedule decodes in `order`, for which a model was trained."""
    kind = parse(text).kind
    if KINDS[kind].order != order:
        fitting = ", ".join(name for name, known in KINDS.items() if known.order == order)
        raise ScheduleError(
            f"schedule {text!r} decodes in {KINDS[kind].order} order, this model in {order} order: use one of {fitting}"
        )


def keeps(text: str) -> bool:
    """Whether the schedule can start from cells that are known."""
    return KINDS[parse(text).kind].keeps


def require_keeping(text: str) -> None:
    """Raise ScheduleError unless this kind of schedule can start from known cells."""
    if not keeps(text):
        able = ", ".join(name for name, kind in KINDS.items() if kind.keeps)
        raise ScheduleError(
            f"schedule {text!r} decodes in an order of its own and cannot keep cells or go beyond the grid: that takes "
            f"a model and a schedule of random order ({able})"
        )


def require_specials(schedule: Schedule, specials: int, row_end: int | None = None) -> None:
    """Raise ScheduleError unless the schedule feeds just the special tokens that the model was trained with.

    `row_end`: as in `compile_schedule`; the last row needs no end, so a grid of one row feeds none.
    """
    if row_end is not None and schedule.grid[0] == 1:
        specials = 0
    if schedule.specials != specials:
        raise ScheduleError(
            f"schedule {schedule.specification} needs {schedule.specials} special tokens, the model was trained with "
            f"{specials}: use the schedule that it was trained for"
        )


def _parts(head: str) -> tuple[str, str, str]:
    """Name, mark and number of a kind; the latter two empty where there are none."""
    if head in KINDS:
        return head, "", ""
    return head.rpartition("=") if "=" in head else head.partition(":")


def _integer(text: str, what: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise ScheduleError(f"{what} needs a whole number, not {text!r}")
    return int(text)


def _word(key: str, value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ScheduleError(f"option {key} is one of {', '.join(words)}, not {value!r}")
    return value


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
