"""A profile as one HTML page that needs nothing else: tables, and plots as SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arforge.runner.errors import RequestError
from arforge.runner.optional import needed
from arforge.runner.output import write_whole

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1000px; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto } h2 { margin-top: 2em }"""
OPERATORS_SHOWN = 15
Draw = Callable[[Any], None]
"""Draws on a matplotlib Axes."""


def require_matplotlib() -> None:
    """Raise RequestError if plots cannot be drawn."""
    with needed("plotting", "evaluate", RequestError):
        import matplotlib.figure  # noqa: F401


def save_page(path: Path, figures: dict[str, Any], quality: dict[str, Any] | None = None) -> None:
    """Write the page of a profile's JSON; `quality`: the JSON of `arforge evaluate`, for quality against latency.

    Raises RequestError if matplotlib is not installed or the file cannot be written.
    """
    require_matplotlib()
    text = "\n".join(parts(figures, quality)) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def parts(figures: dict[str, Any], quality: dict[str, Any] | None) -> Iterator[str]:
    rows = figures["schedules"]
    title = html.escape(f"{figures['bundle']}: {figures['target']} {figures['precision']}")
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    yield f"<h1>{title}</h1><p>{html.escape(settings_line(figures))}</p>"
    yield "<h2>Schedules</h2>" + schedule_table(rows)
    yield "<h2>Time per step along the schedule</h2>" + plot(lambda axes: along(axes, rows))
    yield "<h2>Time per step by width</h2>" + width_table(rows)
    if all(row["ms_per_image"] is not None for row in rows):
        yield "<h2>Where the time of an image goes</h2>" + plot(lambda axes: shares(axes, rows))
    if any(row.get("sensors") for row in rows):
        yield "<h2>Power, clocks and temperatures</h2>" + sensor_table(rows)
        yield "".join(
            f"<p>{html.escape(row['schedule'])}: {html.escape(line)}</p>" for row in rows for line in sensor_lines(row)
        )
    if figures.get("operators"):
        yield "<h2>Time by operator</h2>" + operator_parts(figures["operators"])
    points = quality_points(rows, quality) if quality else []
    if points:
        yield f"<h2>Quality against latency</h2><p>{html.escape(quality_measure(quality))}</p>"
        yield plot(lambda axes: against_latency(axes, points))


def settings_line(figures: dict[str, Any]) -> str:
    """What the figures were taken with."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    bandwidth = figures.get("streaming_bytes_per_second")
    streamed = f", memory streams {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""
    return (
        f"{figures['device']}{streamed}; {versions}; batch {figures['batch']}, guidance {figures['guidance']:g}, "
        f"{figures['warm_ups']} warm-ups, {figures['repeats']} generations measured"
    )


def plot(draw: Draw) -> str:
    """An SVG of one panel."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.3)
    draw(axes)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def along(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        axes.plot(row["step_ms"], label=row["schedule"], linewidth=1)
    axes.set(xlabel="step", ylabel="ms", ylim=(0, None))
    axes.legend(fontsize=8)


def shares(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of engine, runner and image decoder, in milliseconds an image."""
    names = [row["schedule"] for row in rows]
    tokens = [row["ms_per_image_tokens"] for row in rows]
    inside = [row["engine_share"] * part for row, part in zip(rows, tokens, strict=True)]
    beside = [part - engine for part, engine in zip(tokens, inside, strict=True)]
    decoder = [row["ms_per_image_decoder"] or 0 for row in rows]
    left = [0.0] * len(rows)
    for label, widths in (("engine", inside), ("runner", beside), ("image decoder", decoder)):
        axes.barh(names, widths, left=left, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="ms an image")
    axes.invert_yaxis()
    axes.legend(fontsize=8)


def operator_parts(operators: dict[str, Any]) -> str:
    shown = operators["times"][:OPERATORS_SHOWN]
    total = sum(row["ms"] for row in operators["times"])

    def draw(axes: Any) -> None:
        axes.barh([row["operator"] for row in shown], [row["ms"] / operators["steps"] for row in shown])
        axes.set(xlabel=f"ms a step of {operators['schedule']}")
        axes.invert_yaxis()

    cells = [
        (row["operator"], row["calls"], f"{row['ms'] / operators['steps']:.3f}", f"{100 * row['ms'] / total:.1f} %")
        for row in shown
    ]
    return plot(draw) + table(("operator", "calls", "ms a step", "share"), cells)


def quality_points(rows: list[dict[str, Any]], quality: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Schedule, milliseconds an image, distance, of those that were both profiled and evaluated."""
    key = quality_key(quality)
    distances = {row["schedule"]: row[key] for row in quality["schedules"]}
    return [
        (row["schedule"], row["ms_per_image"], distances[row["schedule"]])
        for row in rows
        if row["schedule"] in distances and row["ms_per_image"] is not None
    ]


def quality_key(quality: dict[str, Any]) -> str:
    """The name of the distance in `arforge evaluate --json`. Raises RequestError for other files."""
    rows = quality.get("schedules") if isinstance(quality, dict) else None
    keys = [str(key) for key in (rows[0] if rows else {}) if key.startswith("frechet_distance")]
    if not keys:
        raise RequestError("the quality file holds no distances: give what `arforge evaluate --json` wrote")
    return keys[0]


def quality_measure(quality: dict[str, Any] | None) -> str:
    return str((quality or {}).get("measure", ""))


def against_latency(axes: Any, points: list[tuple[str, float, float]]) -> None:
    axes.plot([time for _, time, _ in points], [distance for *_, distance in points], "o")
    for schedule, time, distance in points:
        axes.annotate(schedule, (time, distance), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="ms an image", ylabel="distance")
    axes.margins(0.15)


def schedule_table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "schedule",
        "steps",
        "median ms",
        "p95",
        "p99",
        "ms an image",
        "images/s",
        "runner ms",
        "GB/s",
        "of memory",
    )
    cells = []
    for row in rows:
        step, share = row["ms_per_step"], row["bandwidth_share"]
        image = (
            ("", "")
            if row["ms_per_image"] is None
            else (f"{row['ms_per_image']:.1f}", f"{row['images_per_second']:.2f}")
        )
        cells.append(
            (
                *(row["schedule"], row["steps"], *(f"{step[name]:.2f}" for name in ("median", "p95", "p99")), *image),
                *(f"{row['runner_ms_per_step']:.3f}", f"{row['bytes_per_second'] / 1e9:.1f}"),
                "" if share is None else f"{100 * share:.0f} %",
            )
        )
    return table(heads, cells)


def width_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            *(row["schedule"], part["width"], part.get("queries", ""), part["steps"]),
            *(f"{part[name]:.2f}" for name in ("median", "p95", "p99")),
        )
        for row in rows
        for part in row["ms_per_step_by_width"]
    ]
    return table(("schedule", "width", "queries", "steps", "median ms", "p95", "p99"), cells)


def sensor_table(rows: list[dict[str, Any]]) -> str:
    """A row for each rail, clock and zone of each schedule."""
    units = (("milliwatts", "mW"), ("megahertz", "MHz"), ("celsius", "°C"))
    cells = [
        (row["schedule"], name, unit, *(f"{told[part]:.0f}" for part in ("mean", "least", "largest")))
        for row in rows
        for kind, unit in units
        for name, told in ((row["sensors"] or {}).get(kind) or {}).items()
    ]
    return table(("schedule", "sensor", "unit", "mean", "least", "largest"), cells)


def sensor_lines(row: dict[str, Any]) -> Iterator[str]:
    """What is to be said of a schedule's power and of what held its clocks down."""
    sensors = row.get("sensors")
    if not sensors:
        return
    if row["watts"] is not None and row["joules_per_image"] is not None:
        yield f"{row['watts']:.2f} W, {row['joules_per_image']:.2f} J an image ({sensors['samples']} samples)"
    held = [f"{name} in {100 * share:.0f} % of the samples" for name, share in sensors["throttled"].items()]
    held += [f"{count} events of {name}" for name, count in sensors["events"].items() if count]
    if held:
        yield f"clocks were held down: {', '.join(held)}"


def table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    def line(tag: str, cells: tuple[Any, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line("th", heads) + "".join(line("td", row) for row in rows) + "</table>"
