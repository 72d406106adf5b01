"""Option types that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def measured_jacobi(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of running ahead on drafts."""
    windows = identity["jacobi"]
    if not windows:
        return "jacobi: nothing to measure, this model does not decode in raster order"
    listed = ", ".join(f"{one['inputs']}: {one['calls']:g} calls, {one['time']:g}" for one in windows)
    best = min(windows, key=lambda one: one["time"])
    verdict = f"jacobi:{best['inputs']} is the quickest" if best["time"] < 1 else "ntp is the quickest"
    return f"jacobi:L, calls an image and time of ntp's: {listed}; {verdict}"


OF_KIND = {"table": "steps", "loop": "drafts"}  # what follows one another without the host


def calls_a_launch(identity: Mapping[str, Any]) -> str:
    """Whether a TensorRT engine's calls follow one another without the host, by its identity."""
    made = [name for name in ("table", "loop") if identity.get(name) is not None]
    if not made:
        reasons = [identity.get(f"{name}_reason", "built before there were more") for name in OF_KIND]
        return f"1 call a launch ({'; '.join(dict.fromkeys(filter(None, reasons)))})"
    found = []
    for name in made:
        widths = sorted({profile["width"] for profile in identity[f"{name}_profiles"]})
        found.append(f"{OF_KIND[name]} of width {', '.join(map(str, widths))}")
    return f"several calls a launch: {' and '.join(found)}"


def copied_caches(identity: Mapping[str, Any]) -> str:
    """What a TensorRT engine's steps copy of their caches, by its identity."""
    copied = identity.get("copied_cache_bytes")
    if copied is None:
        return "copied caches: not known"
    pairs = [(profile["width"], count) for profile, count in zip(identity["profiles"], copied, strict=True)]
    alone, wide = ([count for width, count in pairs if (width > 1) == wider] for wider in (False, True))
    parts = [(alone, " at width 1"), (wide, " above")] if alone and wide and set(alone) != set(wide) else [(copied, "")]
    said = []
    for counts, where in parts:
        least, most = human(min(counts)), human(max(counts))
        said.append(f"{least if least == most else f'{least} to {most}'} a step{where}")
    return f"copied caches: {', '.join(said)}"


def only_read(identity: Mapping[str, Any]) -> str:
    """Where a TensorRT engine only reads its caches, that it does and why, before what else is said of it."""
    caches = identity.get("caches", {"lowering": "in-place"})
    return "" if caches["lowering"] == "in-place" else f"caches {caches['lowering']} ({caches['reason']}), "


def measured_products(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the quantisations that were tried for it."""
    blocks, rows = (identity["product_milliseconds"][form] for form in ("blocks", "rows"))
    listed = ", ".join(f"{width}: {blocks[width]:g} and {rows[width]:g}" for width in sorted(blocks, key=int))
    return f"ms of a step's products by width, in blocks and by rows: {listed}; built {identity['quantization']}"


def measured_widths(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the widths that were measured for it."""
    times = identity["width_milliseconds"]
    listed = ", ".join(f"{width}: {times[width]:g}" for width in sorted(times, key=int))
    kept = identity["widths"]
    verdict = f"the others are padded to {', '.join(map(str, kept))}" if kept else "none is quicker padded"
    return f"ms a step by width: {listed}; {verdict}"
