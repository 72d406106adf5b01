"""Option types that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arforge.runner.device import check_threads
from arforge.runner.targets import TARGETS

if TYPE_CHECKING:
    GridType = click.ParamType[tuple[int, int]]
    NumbersType = click.ParamType[tuple[int, ...]]
    ClassesType = click.ParamType[tuple[int | str, ...]]
else:  # no generic class before click 8.4
    GridType = NumbersType = ClassesType = click.ParamType

PATH = click.Path(path_type=Path)
MAX_RANGE = 1 << 20


target_option = click.option("--target", default=TARGETS[0], show_default=True, help="Engine to run on.")
precision_option = click.option(
    "--precision", help="Precision of that engine.  [default: fp32, of TensorRT fp16; else blocks that are stored]"
)
threads_option = click.option(
    "--threads",
    type=int,
    callback=lambda ctx, param, value: check_threads(value),
    help="CPU threads.  [default: one an available core]",
)

look_every_option = click.option(
    "--look-every",
    type=click.IntRange(min=0),
    help="TensorRT: calls without the host, between two looks for progress and cancel; 0: all.  [default: 8]",
)


class Grid(GridType):
    """Rows x columns: `24x24`."""

    name = "ROWSxCOLUMNS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,4})[x×](\d{1,4})", str(value).strip().lower())
        if match is None or min(int(match[1]), int(match[2])) < 1:
            self.fail(f"{value!r} is not a grid: write rows x columns, such as 24x24", param, ctx)
        return int(match[1]), int(match[2])


class Numbers(NumbersType):
    """Whole numbers with commas and ranges: `3`, `1,5`, `0-9`."""

    name = "N[,N-M]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"(-?\d+)(?:-(\d+))?", part.strip())
            if match is None:
                self.fail(f"{part!r} is not a whole number or a range such as 0-9", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if not 0 <= last - first < MAX_RANGE:
                self.fail(f"{part!r} is not a rising range of fewer than {MAX_RANGE} numbers", param, ctx)
            numbers.extend(range(first, last + 1))
        return tuple(numbers)


class Classes(ClassesType):
    """Classes by number, as `Numbers`, or one by its name."""

    name = "N[,N-M]|NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | str, ...]:
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"[-\d\s,]+", str(value)):
            return Numbers().convert(value, param, ctx)
        return (str(value),)


def human(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
