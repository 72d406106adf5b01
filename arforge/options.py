"""Option types that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arforge.runner.device import check_threads
from arforge.runner.loop_graph import PASSES
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


def calls_a_launch(identity: Mapping[str, Any]) -> str:
    """Whether a TensorRT engine's calls follow one another without the host, by its identity."""
    if identity.get("loop") is None:
        return f"1 call a launch ({identity.get('loop_reason', 'built before there were more')})"
    widths = sorted({profile["width"] for profile in identity["loop_profiles"]})
    return f"{PASSES} calls of width {', '.join(map(str, widths))} a launch"


def measured_caches(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the 8-bit caches that were tried for it."""
    plain, low = (identity["cache_milliseconds"][kind] for kind in ("fp32", "int8"))
    listed = ", ".join(f"{width}: {plain[width]:g} and {low[width]:g}" for width in sorted(plain, key=int))
    found, width = identity["cache_check"], identity.get("cache_width")
    kept = f", layers {', '.join(map(str, found['kept']))} float32" if found["kept"] else ""
    verdict = (
        f"8 bits in schedules of up to {width} tokens a step" if width else "8 bits are not quicker, float32 stays"
    )
    return (
        f"ms a step by width, with float32 and 8-bit caches: {listed}; error at most {found['error']:.2%}, "
        f"{found['clipped']:.4%} clipped{kept}; {verdict}"
    )


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
