"""`arforge calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arforge.options import PATH, human, threads_option
from arforge.progress import progress_bars
from arforge.runner.command_line import command_line
from arforge.subjects import Asked, asked_options

if TYPE_CHECKING:
    from arforge.calibration.int8 import Calibrated
    from arforge.calibration.layer_error import LayerError

SHOWN = 8  # layers


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--schedule", "schedules", multiple=True, help="Generate by it; repeatable.  [default: all stored]")
@asked_options
@click.option("--samples", default=32, show_default=True, help="Images a schedule that the ranges are taken from.")
@click.option("--method", default="max", show_default=True, help="Rule of the ranges: max, percentile or entropy.")
@click.option("--percentile", default=99.99, show_default=True, help="Share of values inside, for that method.")
@click.option("--smooth", default=0.75, show_default=True, help="SmoothQuant's alpha, outliers to weights; 0 is off.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Layers to keep in fp32: output, layers.0.*")
@click.option("--guidance", type=float, help="Guidance scale; 1 is off.  [default: the bundle's]")
@click.option("--seed", type=int, default=0, show_default=True, help="First seed; later images count up from it.")
@click.option("--batch", default=8, show_default=True, help="Images decoded at a time.")
@click.option("--check", type=click.IntRange(min=0), default=8, show_default=True, help="Other images to measure on.")
@click.option(
    "--trials", type=click.IntRange(min=0), default=3, show_default=True, help="Worst layers tried without int8."
)
@threads_option
@click.option("--json", "json_file", type=PATH, help="Write settings, ranges and report as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(
    bundle: Path,
    schedules: tuple[str, ...],
    asked: Asked,
    samples: int,
    method: str,
    percentile: float,
    smooth: float,
    exclude: tuple[str, ...],
    guidance: float | None,
    seed: int,
    batch: int,
    check: int,
    trials: int,
    threads: int | None,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Give BUNDLE int8 graphs, with ranges from images that its own schedules generate.

    The report compares int8 with fp32 on other images: layer by layer, the most likely token after the same tokens, and
    whole images. Calibrating again replaces the int8 graphs. Without --class, classes are spread over all there are;
    a model that takes prompts needs real ones.
    """
    from arforge.calibration.int8 import CalibrationJob, calibrate
    from arforge.calibration.ranges import Rule
    from arforge.runner.bundle import open_bundle
    from arforge.runner.output import check_outputs, write_whole

    check_outputs({"--json": json_file})
    job = CalibrationJob(
        bundle,
        Rule(method, percentile),
        schedules,
        samples,
        seed,
        guidance,
        batch,
        smooth,
        exclude,
        check,
        trials,
        threads,
        asked.subjects(open_bundle(bundle).model),
    )
    with progress_bars(quiet=quiet) as progress:
        done = calibrate(job, progress)
    show(done, bundle)
    if json_file:
        text = json.dumps({"bundle": bundle.name, **done.record}, indent=1) + "\n"
        write_whole(json_file, lambda file: file.write(text.encode()))


def show(done: Calibrated, bundle: Path) -> None:
    record, requests = done.record, done.requests
    rule = f"percentile {record['percentile']:g}" if record["percentile"] else record["method"]
    how = f"{rule}, {done.smoothed} activations smoothed by {record['smooth']:g}" if record["smooth"] else rule
    click.echo(f"{bundle}: {done.layers} layers in int8, {len(done.excluded)} left in fp32; ranges by {how}")
    click.echo(
        f"  {len(requests.seeds)} images by each of {', '.join(requests.schedules)}; guidance {requests.guidance:g}, "
        f"seeds {requests.seeds[0]} to {requests.seeds[-1]}; {record['device']}"
    )
    if done.report.layers:
        show_layers(done.report.layers)
        show_tokens(done)
    for engine in done.stale:
        click.echo(f"removed the engine {engine}: it was built from the int8 graph that this one replaces")
    click.echo(
        f"next: {command_line('build', bundle, '--precision', 'int8', '--quantization', 'static')}, or with "
        f"--target tensorrt-rtx in its place; what it does to images: {command_line('evaluate', bundle)} "
        "--reference … with --precision fp32 and int8"
    )


def show_layers(errors: list[LayerError]) -> None:
    worst = sorted(errors, key=lambda error: -error.error)
    width = max(len(error.layer) for error in worst[:SHOWN])
    click.echo(f"{'worst layers':{width}}  {'shape':>11}  {'range':>7}  clipped   error      SQNR")
    for error in worst[:SHOWN]:
        shape = f"{error.inputs}x{error.outputs}"
        click.echo(
            f"{error.layer:{width}}  {shape:>11}  {error.limit:7.2f}  {100 * error.clipped:6.3f}%  "
            f"{100 * error.error:5.2f}%  {error.sqnr:5.1f} dB"
        )
    median = worst[len(worst) // 2]
    click.echo(f"{len(worst)} layers, median error {100 * median.error:.2f}%, {median.sqnr:.1f} dB")


def show_tokens(done: Calibrated) -> None:
    report = done.report
    click.echo(f"{'schedule':28}  same most likely token  logit error  same tokens in greedy images")
    for found in report.agreement:
        click.echo(
            f"{found.schedule:28}  {100 * found.top1:19.1f} %  {100 * found.logit_error:9.2f} %  "
            f"{100 * report.same_tokens[found.schedule]:26.1f} %"
        )
    if report.trials:
        schedule = report.trials[0].agreement.schedule
        click.echo(f"{'with --exclude':28}  same most likely token  logit error  more bytes, on {schedule}")
    for trial in report.trials:
        name = trial.excluded[0] if len(trial.excluded) == 1 else f"these {len(trial.excluded)}"
        click.echo(
            f"{name:28}  {100 * trial.agreement.top1:19.1f} %  {100 * trial.agreement.logit_error:9.2f} %  "
            f"{human(trial.bytes_added):>10}"
        )
