"""`arforge profile`."""

from __future__ import annotations

import json
import platform
import time
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arforge.engine import open_built, precision_of
from arforge.options import PATH, human, precision_option, target_option, threads_option
from arforge.subjects import Asked, asked_options
from arforge.version import VERSION

if TYPE_CHECKING:
    from arforge.runner.profiling.profile import Settings

HEADS = ("schedule", "steps", "ms/step", "p95", "p99", "ms/image", "images/s", "runner", "GB/step", "memory", "GFLOP/s")
LINE = "{:28} {:>5} {:>8} {:>8} {:>8} {:>9} {:>8} {:>7} {:>8} {:>7} {:>8}"


@click.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--schedule", "schedules", multiple=True, help="Schedule to measure; repeatable.  [default: all stored]")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images decoded together.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is off.  [default: the bundle's]")
@click.option("--warm-ups", type=click.IntRange(min=0), default=1, show_default=True, help="Generations not counted.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Generations measured.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Measure the first N steps of a generation only.")
@click.option("--layers", is_flag=True, help="Also time by operator, in the first schedule.")
@asked_options
@target_option
@precision_option
@threads_option
@click.option("--json", "json_file", type=PATH, help="All figures, with device and versions.")
@click.option("--html", "html_file", type=PATH, help="One page with tables and plots.")
@click.option("--quality", type=PATH, help="JSON of `arforge evaluate`: the page shows quality against latency.")
@click.option("--sysfs", type=PATH, help="Where to read power, clocks and temperatures.  [default: /sys]")
@click.option("--read", "given", type=PATH, help="Show this JSON, also of `arforge-run --profile`; measure nothing.")
def command(
    bundle: Path | None,
    schedules: tuple[str, ...],
    batch: int,
    guidance: float | None,
    warm_ups: int,
    repeats: int,
    max_steps: int | None,
    layers: bool,
    target: str,
    precision: str | None,
    threads: int | None,
    json_file: Path | None,
    html_file: Path | None,
    quality: Path | None,
    sysfs: Path | None,
    given: Path | None,
    asked: Asked,
) -> None:
    """Show where the time of BUNDLE's schedules goes, step by step.

    ms/step is the median. memory is the share of the measured streaming bandwidth that weights and live caches take.

    \b
    arforge profile llamagen-l.bundle --schedule ntp --schedule zipar:16 --json profile.json --html profile.html
    arforge profile --read profile.json --html profile.html
    """
    from arforge.runner.bundle import open_bundle
    from arforge.runner.errors import EngineError
    from arforge.runner.output import check_outputs, write_whole
    from arforge.runner.profiling.page import require_matplotlib, save_page
    from arforge.runner.profiling.profile import Settings

    if html_file:
        require_matplotlib()
    if quality and not html_file:
        raise click.UsageError("--quality is drawn on the page: name it with --html")
    if layers and target != "onnxruntime":
        raise EngineError(f"--layers reads ONNX Runtime's profiler: {target} has none here")
    check_outputs({"--json": json_file, "--html": html_file})
    judged = read_quality(quality) if quality else None
    if (bundle is None) == (given is None):
        raise click.UsageError("name a BUNDLE to measure, or a profile to show with --read")
    if bundle is None:
        if json_file or layers:
            raise click.UsageError("--read measures nothing: leave --json and --layers out")
        figures = read_profile(given)
        show(figures["bundle"], figures)
        if "operators" in figures:
            show_operators(figures["operators"])
        if html_file:
            save_page(html_file, figures, judged)
        return
    subjects = asked.subjects(open_bundle(bundle).model)
    settings = Settings(batch, guidance, warm_ups, repeats, max_steps, subjects)
    precision = precision_of(bundle, target, precision)
    figures = measure(bundle, schedules, settings, target, precision, threads, sysfs)
    show(bundle, figures)
    if layers:
        figures["operators"] = operators(bundle, figures["schedules"][0]["schedule"], settings, precision, threads)
        show_operators(figures["operators"])
    if json_file:
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        write_whole(json_file, lambda file: file.write(text.encode()))
    if html_file:
        save_page(html_file, figures, judged)


def show(name: object, figures: dict[str, Any]) -> None:
    """The table of a profile, and what else there is to say."""
    from arforge.runner.profiling.page import sensor_lines, settings_line

    click.echo(f"{name}: {figures['target']} {figures['precision']}, {settings_line(figures)}")
    click.echo(
        f"loaded in {figures['load_seconds']:.2f} s, first step after {figures['first_step_seconds']:.2f} s; "
        f"peak memory {human(figures['peak_memory_bytes'] or 0)}"
    )
    click.echo(LINE.format(*HEADS))
    for row in figures["schedules"]:
        click.echo(line_of(row))
    for row in figures["schedules"]:
        if "steps_per_call" in row:
            click.echo(
                f"{row['schedule']}: {row['steps_per_call']:.2f} steps a call; "
                f"{100 * row['share_of_single_steps']:.0f} % of the calls gave one alone"
            )
        for line in sensor_lines(row):
            click.echo(f"{row['schedule']}: {line}")
    if any(row["prompt_slots"] for row in figures["schedules"]):
        row = figures["schedules"][0]
        click.echo(
            f"prompts of {1 + row['prompt_slots']:.0f} tokens a row: {row['ms_to_filled_caches']:.1f} ms to filled "
            f"caches, {row['ms_to_first_token']:.1f} ms to the first token ({row['schedule']})"
        )


def show_operators(operators: dict[str, Any]) -> None:
    steps, total = operators["steps"], sum(row["ms"] for row in operators["times"])
    click.echo(f"operators of {operators['schedule']}   calls  ms/step   share")
    for row in operators["times"]:
        click.echo(f"  {row['operator']:26} {row['calls']:7} {row['ms'] / steps:8.3f} {100 * row['ms'] / total:6.1f}%")


def measure(
    bundle: Path,
    schedules: tuple[str, ...],
    settings: Settings,
    target: str,
    precision: str,
    threads: int | None,
    sysfs: Path | None,
) -> dict[str, Any]:
    """Every figure but those by operator."""
    from arforge.runner.device import peak_memory
    from arforge.runner.errors import RequestError
    from arforge.runner.profiling.profile import TimedEngine, Traffic, against_first, profile_schedule, summary
    from arforge.runner.profiling.sensors import SYSFS, Sensors
    from arforge.runner.runner import Runner, open_codec, open_engine

    opened = open_built(bundle, target, precision)
    chosen = list(dict.fromkeys(schedules)) or list(opened.specifications)
    if not chosen:
        raise RequestError(f"{bundle} stores no schedule: name one with --schedule")
    for schedule in chosen:
        opened.schedule(schedule)  # refused before the long work
    start = time.perf_counter()
    opened_engine = open_engine(opened, target, precision, threads)
    engine, codec = TimedEngine(opened_engine), open_codec(opened, opened_engine, threads)
    loaded = time.perf_counter() - start
    traffic = Traffic.of(opened, precision, engine.cache_type, target)
    with Runner(opened, engine, codec) as runner, closing(Sensors.found(sysfs or SYSFS)) as sensors:
        profiles = [profile_schedule(runner, engine, schedule, settings, sensors) for schedule in chosen]
        peak = peak_memory()  # before the bandwidth is measured, which takes memory of its own
        bandwidth, device = engine.bandwidth(), engine.device
    assert engine.first_step is not None
    rows = [summary(profile, traffic, bandwidth) for profile in profiles]
    if rows and all(row["ms_per_image"] is not None for row in rows):
        rows = [{**row, **saved} for row, saved in zip(rows, against_first(rows), strict=True)]
    return {
        "bundle": bundle.name,
        "family": opened.model.family,
        "variant": opened.model.variant,
        "device": device,
        "versions": versions(target),
        "target": target,
        "precision": precision,
        "threads": threads,
        "batch": settings.images,
        "guidance": opened.sampler.guidance if settings.guidance is None else settings.guidance,
        "warm_ups": settings.warm_ups,
        "repeats": settings.repeats,
        "max_steps": settings.max_steps,
        "streaming_bytes_per_second": bandwidth,
        "load_seconds": loaded,
        "first_step_seconds": engine.first_step - start,
        "peak_memory_bytes": peak,
        "schedules": rows,
    }


def operators(bundle: Path, schedule: str, settings: Settings, precision: str, threads: int | None) -> dict[str, Any]:
    """Time by operator over one generation."""
    from arforge.runner.bundle import open_bundle
    from arforge.runner.profiling.operator_times import TracedEngine
    from arforge.runner.profiling.profile import generate_once
    from arforge.runner.runner import Runner

    opened = open_bundle(bundle)
    engine = TracedEngine.built(opened, precision, threads)
    with Runner(replace(opened, image_tokenizer=None), engine) as runner:
        steps = len(generate_once(runner, schedule, settings)[0].ends)
        times = engine.times()
    return {
        "schedule": schedule,
        "steps": steps,
        "times": [{"operator": row.operator, "calls": row.calls, "ms": 1000 * row.seconds} for row in times],
    }


def read_quality(path: Path) -> dict[str, Any]:
    """What `arforge evaluate --json` wrote. Raises RequestError for other files."""
    from arforge.runner.errors import RequestError
    from arforge.runner.profiling.page import quality_key

    try:
        quality: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}. Give what `arforge evaluate --json` wrote") from None
    quality_key(quality)
    return quality


def read_profile(path: Path | None) -> dict[str, Any]:
    """What `arforge profile --json` or `arforge-run --profile` wrote. Raises RequestError for other files."""
    from arforge.runner.errors import RequestError

    assert path is not None
    try:
        figures: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}. Give what `arforge profile --json` wrote") from None
    rows = figures.get("schedules") if isinstance(figures, dict) else None
    if not rows or "ms_per_step" not in rows[0]:
        raise RequestError(f"{path} holds no profile: give what `arforge profile --json` wrote")
    return figures


def versions(target: str) -> dict[str, str]:
    """Of what the figures depend on."""
    from arforge.runner.backends.kernels import find_kernels

    library = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13-bindings"}
    names = ("numpy", library[target])
    kernels = {"kernels": VERSION} if target == "onnxruntime" and find_kernels() is not None else {}
    return {
        "arforge": VERSION,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        **kernels,
    }


def line_of(row: dict[str, Any]) -> str:
    step, share, watts = row["ms_per_step"], row["bandwidth_share"], row["watts"]
    image, rate = row["ms_per_image"], row["images_per_second"]
    moved = (row["weight_bytes_per_step"] + row["cache_bytes_per_step"]) / 1e9
    line = LINE.format(
        row["schedule"],
        row["steps"],
        *(f"{step[name]:.2f}" for name in ("median", "p95", "p99")),
        "" if image is None else f"{image:.1f}",
        "" if rate is None else f"{rate:.2f}",
        f"{100 * (1 - row['engine_share']):.1f}%",
        f"{moved:.3f}",
        "" if share is None else f"{100 * share:.0f}%",
        f"{row['operations_per_second'] / 1e9:.1f}",
    )
    return line if watts is None else f"{line}  {watts:.1f} W"
