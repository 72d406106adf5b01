"""`arforge evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arforge.engine import open_built, precision_of
from arforge.options import PATH, precision_option, target_option, threads_option
from arforge.progress import progress_bar
from arforge.subjects import Asked, asked_options

if TYPE_CHECKING:
    from arforge.calibration.quality.evaluation import Quality
    from arforge.runner.bundle import ModelFacts
    from arforge.runner.request import Subjects

SIDES = click.IntRange(32, 1024)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--schedule", "schedules", multiple=True, help="Schedule to judge; repeatable.  [default: all stored]")
@click.option("--reference", type=PATH, required=True, help="Real images: a folder, or an .npz with arr_0.")
@click.option("--floor", type=PATH, help="More real images: their distance is what a perfect model would get.")
@click.option("--samples", type=click.IntRange(min=2), default=10_000, show_default=True, help="Images a schedule.")
@asked_options
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="First seed; they count up.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is off.  [default: the bundle's]")
@click.option("--temperature", type=float, help="Temperature; 0 is greedy.  [default: the bundle's]")
@click.option("--top-k", type=int, help="Sample from the K most likely tokens; 0 is off.  [default: the bundle's]")
@click.option("--top-p", type=float, help="Sample from the most likely tokens of mass P.  [default: the bundle's]")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images decoded at a time.")
@click.option("--classifier", type=PATH, help="ONNX judge of class accuracy: uint8 images in, scores out.")
@click.option("--side", type=SIDES, help="Input side of the feature network.  [default: by the images' size]")
@target_option
@precision_option
@threads_option
@click.option("--json", "json_file", type=PATH, help="All figures with device, versions and settings.")
@click.option("--plot", type=PATH, help="PNG of quality against steps and against time.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(
    bundle: Path,
    schedules: tuple[str, ...],
    reference: Path,
    floor: Path | None,
    samples: int,
    seed: int,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    batch: int,
    classifier: Path | None,
    side: int | None,
    target: str,
    precision: str | None,
    threads: int | None,
    json_file: Path | None,
    plot: Path | None,
    quiet: bool,
    asked: Asked,
) -> None:
    """Judge schedules of BUNDLE against real images, going round its classes, or the prompts given.

    The distance is the Fréchet distance of EfficientNet-Lite0 features. It orders schedules of one model; it is not
    Inception's FID and not comparable with published ones.

    \b
    arforge evaluate llamagen-l.bundle --schedule ntp --schedule zipar:16 --reference imagenet-val/ \\
        --samples 10000 --guidance 2 --json quality.json --plot quality.png
    """
    from arforge.calibration.quality import evaluation as quality
    from arforge.calibration.quality.classifier import Classifier
    from arforge.calibration.quality.features import FeatureExtractor, feature_side
    from arforge.calibration.quality.frechet import frechet_distance
    from arforge.calibration.quality.image_set import open_image_set
    from arforge.calibration.quality.plot import Point, save_plot
    from arforge.runner.output import check_outputs, is_stream
    from arforge.runner.profiling.page import require_matplotlib
    from arforge.runner.request import Sampling
    from arforge.runner.runner import Runner

    if plot:
        require_matplotlib()
    check_outputs({"--json": json_file, "--plot": plot})
    real = {what: open_image_set(path) for what, path in (("reference", reference), ("floor", floor)) if path}
    precision = precision_of(bundle, target, precision)
    open_built(bundle, target, precision)
    with Runner.open(bundle, target=target, precision=precision, threads=threads) as runner:
        opened = runner.bundle
        size = quality.image_size(opened)
        for images in real.values():
            quality.check_images(images, size, bundle)
        stored = list(opened.specifications)
        chosen = list(dict.fromkeys(schedules or stored))
        for schedule in chosen:
            opened.schedule(schedule)  # refused before the long work, not after it
        samplers = opened.sampler
        sampling = Sampling(
            guidance=samplers.guidance if guidance is None else guidance,
            temperature=samplers.temperature if temperature is None else temperature,
            top_k=samplers.top_k if top_k is None else top_k,
            top_p=samplers.top_p if top_p is None else top_p,
        )
        wanted = quality.Samples(samples, judged(asked, opened.model, classifier), sampling, seed, min(batch, samples))
        wanted.check()
        judge = None
        if classifier:
            judge = Classifier(classifier, size, opened.model.class_condition.classes, threads)
        extractor = FeatureExtractor(side or feature_side(size), threads)
        facts: dict[str, Any] = {
            "bundle": bundle.name,
            "family": opened.model.family,
            **quality.environment(),
            "target": target,
            "precision": precision,
            "threads": threads,
            "measure": quality.MEASURE,
            "features": extractor.facts(),
            **wanted.to_json(),
            "classifier": classifier.name if classifier else None,
            **{what: {"path": str(images.path), "images": images.count} for what, images in real.items()},
        }
        for line in heading(facts):
            click.echo(line)
        counts = {"samples": samples} | {f"images of the {what}": images.count for what, images in real.items()}
        for note in quality.notes(counts):
            click.echo(f"note: {note}", err=True)
        gaussians = {}
        for what, images in real.items():
            with progress_bar(what, quiet=quiet) as progress:
                gaussians[what] = quality.gaussian_of(images, extractor, progress=progress)
        click.echo(f"{'schedule':44} steps  ms/image  distance  class accuracy")
        floor_distance = None
        if floor:
            floor_distance = frechet_distance(gaussians["floor"], gaussians["reference"])
            facts["floor"][quality.DISTANCE] = floor_distance
            click.echo(f"{'real images (--floor)':44} {'':5}  {'':8}  {floor_distance:8.3f}")
        rows = []
        for schedule in chosen:
            with progress_bar(schedule, quiet=quiet) as progress:
                rows.append(
                    quality.evaluate_schedule(
                        runner, schedule, wanted, gaussians["reference"], extractor, judge, progress
                    )
                )
            click.echo(line_of(rows[-1]))
            # after every schedule: a run that is cut off has given what it had
            if json_file and (schedule == chosen[-1] or not is_stream(json_file)):
                quality.save_json(json_file, {**facts, "schedules": [row.to_json() for row in rows]})
    if plot:
        points = [Point(row.schedule, "", row.steps, row.milliseconds, row.distance) for row in rows]
        save_plot(plot, points, floor_distance, "\n".join(heading(facts)))


def judged(asked: Asked, model: ModelFacts, classifier: Path | None) -> Subjects:
    """What the images are of: as asked, else all classes.

    Raises RequestError if the model does not take it, UsageError where prompts are missing, or have a classifier.
    """
    from arforge.runner.bundle import ClassCondition
    from arforge.runner.errors import RequestError
    from arforge.runner.request import Subjects, check_classes

    subjects = asked.subjects(model)
    if not isinstance(model.condition, ClassCondition):
        if classifier:
            raise click.UsageError(
                f"this {model.family} model takes prompts: leave out --classifier, a judge of classes"
            )
        if subjects is None:
            raise click.UsageError("nothing to draw: give the prompts to go round with --prompts FILE")
        return subjects
    if subjects is not None and subjects.by != "classes":
        raise RequestError(f"this {model.family} model takes classes, not {subjects.by}")
    named = range(model.condition.classes) if subjects is None else subjects.values
    return Subjects("classes", tuple(check_classes(list(named), model).tolist()))


def heading(facts: dict[str, Any]) -> list[str]:
    """What the figures were taken with."""
    versions, side = facts["versions"], facts["features"]["input_side"]
    tools = ", ".join(f"{name} {versions[name]}" for name in ("arforge", "onnxruntime"))
    engine = f"{facts['target']} {facts['precision']}, batch {facts['batch']}, {facts['threads'] or 'all'} threads"
    seeds = f"seeds {facts['seeds'][0]} to {facts['seeds'][1]}, {subjects_line(facts)}"
    sampler = f"guidance {facts['guidance']:g}, temperature {facts['temperature']:g}"
    cuts = f"top-k {facts['top_k']}, top-p {facts['top_p']:g}"
    return [
        f"{facts['bundle']}: {engine}, {facts['device']}, {tools}",
        f"{facts['samples']} samples, {seeds}, {sampler}, {cuts}; {facts['reference']['images']} real images",
        f"distance: Fréchet, of EfficientNet-Lite0 features at {side}x{side}; it is not Inception's FID",
    ]


def subjects_line(facts: Mapping[str, Any]) -> str:
    if "classes" in facts:
        return f"{len(facts['classes'])} classes"
    if "prompts_by" in facts:
        return f"{facts['prompts']} prompts by {facts['prompts_by']}"
    return f"{len(facts['prompts'])} prompts"


def line_of(row: Quality) -> str:
    accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
    return f"{row.schedule:44} {row.steps:5.4g}  {row.milliseconds:8.1f}  {row.distance:8.3f}  {accuracy:>14}"
