"""`arforge build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from arforge.engine import precision_of
from arforge.identities import calls_a_launch, copied_caches, measured, only_read
from arforge.options import PATH, Numbers, human
from arforge.runner.errors import EngineError
from arforge.runner.targets import TARGETS
from arforge.subjects import Asked, asked_options

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="ONNX Runtime has fp32, int8 and int4, TensorRT all of them.  "
    "[default: fp32, of TensorRT fp16; else blocks that are stored]",
)
@click.option(
    "--width",
    "widths",
    type=Numbers(),
    multiple=True,
    help="Pad steps to these numbers of tokens only; repeatable.  "
    "[default: every width as it is; for TensorRT rounded up to 1, 2, 3, 4, 6, 8, 12, 16, …]",
)
@click.option(
    "--prefill-width",
    "prefill_widths",
    type=Numbers(),
    multiple=True,
    help="TensorRT, models that take prompts: tokens of a prompt that pass at once; repeatable.  "
    "[default: the longest prompt, up to 128]",
)
@click.option(
    "--measure-widths",
    is_flag=True,
    help="ONNX Runtime: time a step of every width that the stored schedules use, and pad where that is quicker.",
)
@click.option(
    "--measure-jacobi",
    is_flag=True,
    help="ONNX Runtime: see which jacobi:L is quickest here, alone and in a batch of 8, for jacobi:auto.",
)
@click.option(
    "--trial/--no-trial",
    default=True,
    help="ONNX Runtime: open the engine and run a step, which takes its memory.  [default: trial]",
)
@click.option(
    "--quantization",
    type=click.Choice(["blocks", "rows", "static"]),
    help="ONNX Runtime, int8: weights in blocks, or whole with a scale a row of activations, which both need no "
    "calibration, or the graph of `arforge calibrate`.  [default: blocks or rows, whichever is quicker here]",
)
@click.option(
    "--cache-precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="ONNX Runtime, int8 and int4: keys and values in 8 bits, by a few images that are drawn for it, in schedules "
    "whose steps are quicker so. A model that takes prompts needs some of the kind that it is to draw.",
)
@asked_options
@click.option("--images", type=Numbers(), multiple=True, help="TensorRT: batches to build for.  [default: 1]")
@click.option(
    "--schedule", "schedules", multiple=True, help="TensorRT: build for it; repeatable.  [default: all stored]"
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="N.N",
    help="TensorRT-RTX: GPUs to build for, such as 8.6; repeatable.  [default: 8.6 and later]",
)
@click.option(
    "--attention",
    type=click.Choice(["auto", "fused", "decomposed", "view"]),
    default="auto",
    show_default=True,
    help="TensorRT: as one operator, or as products and a softmax; TensorRT-RTX: over caches that are never copied.",
)
@click.option(
    "--caches",
    type=click.Choice(["auto", "in-place", "read-only"]),
    default="auto",
    show_default=True,
    help="TensorRT: updated by the engine where they lie, or only read, with rows that the runner puts there.",
)
@click.option(
    "--filters/--no-filters",
    default=None,
    help="TensorRT: with top-k and top-p, which then run in every step.  [default: if the bundle's requests use them]",
)
@click.option(
    "--loop/--no-loop",
    default=True,
    help="TensorRT: several calls a launch, without the host.  [default: where it can be]",
)
@click.option(
    "--known/--no-known",
    default=True,
    help="TensorRT: for requests with known cells too, which take about twice as many profiles.  "
    "[default: where schedules can start from them]",
)
@click.option("--strip-weights", is_flag=True, help="TensorRT: leave the weights out, to be refitted on the device.")
@click.option(
    "--dry-run", is_flag=True, help="TensorRT: print the commands that build without Python, and write nothing."
)
@click.option(
    "--tensorrt-version",
    metavar="N.N",
    help="With --dry-run: the TensorRT that is to build, such as 10.3.  [default: the latest that is known]",
)
@click.option("--graphs", type=PATH, help="With --dry-run: a new folder for the graphs that the commands read.")
def command(
    bundle: Path,
    target: str,
    precision: str | None,
    widths: tuple[tuple[int, ...], ...],
    prefill_widths: tuple[tuple[int, ...], ...],
    measure_widths: bool,
    measure_jacobi: bool,
    trial: bool,
    quantization: str | None,
    cache_precision: str,
    images: tuple[tuple[int, ...], ...],
    schedules: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    attention: str,
    caches: str,
    filters: bool | None,
    loop: bool,
    known: bool,
    strip_weights: bool,
    dry_run: bool,
    tensorrt_version: str | None,
    graphs: Path | None,
    asked: Asked,
) -> None:
    """Build an engine of BUNDLE, and enter it in the bundle.

    For ONNX Runtime this makes the engine's own graph, loads it, runs a trial step, and proves that the caches are
    updated in place; int8 weights are made here. For TensorRT it builds an engine with a profile for each step shape
    and looks at its layers; TensorRT-RTX needs no GPU for that. fp16 and bf16 graphs are made where they are missing.
    """
    precision = precision_of(bundle, target, precision)
    flat = [width for group in widths for width in group]
    if target == "onnxruntime":
        given = {
            "--images": images,
            "--prefill-width": prefill_widths,
            "--schedule": schedules,
            "--compute-capability": compute_capabilities,
            "--attention": attention != "auto",
            "--caches": caches != "auto",
            "--tensorrt-version": tensorrt_version is not None,
            "--filters": filters is not None,
            "--no-loop": not loop,
            "--no-known": not known,
            "--strip-weights": strip_weights,
            "--dry-run": dry_run,
            "--graphs": graphs is not None,
        }
        refuse([name for name, value in given.items() if value])
        build_onnxruntime(
            bundle,
            precision,
            flat,
            quantization,
            caches=cache_precision,
            measure_widths=measure_widths,
            measure_jacobi=measure_jacobi,
            trial=trial,
            asked=asked,
        )
        return
    if asked != Asked():
        raise EngineError("what to draw is for ONNX Runtime's 8-bit caches: leave it out for TensorRT")
    if quantization:
        raise EngineError("--quantization is for ONNX Runtime: TensorRT's int8 is that of `arforge calibrate`")
    if cache_precision != "fp32":
        raise EngineError("--cache-precision is for ONNX Runtime: TensorRT's caches have the engine's precision")
    if graphs and not dry_run:
        raise EngineError("--graphs goes with --dry-run: a build keeps its graphs in the bundle")
    if tensorrt_version and (not dry_run or target != "tensorrt"):
        raise EngineError("--tensorrt-version goes with --dry-run and --target tensorrt: a build asks the library here")
    if measure_widths:
        raise EngineError("--measure-widths is for ONNX Runtime: name TensorRT's widths with --width")
    if not trial:
        raise EngineError("--no-trial is for ONNX Runtime: TensorRT's builder opens no engine")
    if measure_jacobi:
        raise EngineError("--measure-jacobi is for ONNX Runtime: compare windows with `arforge profile` on the device")
    from arforge.engines.tensorrt import BuildJob, build

    batches = [count for group in images for count in group] or [1]
    job = BuildJob(
        bundle,
        target,
        precision,
        compute_capabilities,
        schedules,
        flat,
        batches,
        attention,
        filters,
        strip_weights,
        [width for group in prefill_widths for width in group],
        loop,
        caches,
        tensorrt_version,
        known,
    )
    if dry_run:
        from arforge.engines.trtexec import dry_run as commands

        for line in commands(job, graphs):
            click.echo(line)
        made = f"the graphs are in {graphs}: run the commands there"
        click.echo(made if graphs else "nothing is written: --graphs FOLDER gives the graphs to run them on", err=True)
        return
    built = build(job, lambda line: click.echo(line, err=True))
    identity = built.identity
    widest = max(identity["profiles"], key=lambda one: (one["condition"] <= 1, one["images"], one["width"]))
    passes = ", ".join(map(str, identity["prefill_widths"]))
    prefilled = f"prompts in passes of {passes}, " if passes else ""
    click.echo(
        f"built {target} {precision} for {identity['device']}: {identity['library']}, {len(identity['profiles'])} "
        f"profiles up to {widest['images']} images of width {widest['width']}, {identity['slots']} slots, {prefilled}"
        f"{only_read(identity)}attention {identity['attention']['lowering']}, {copied_caches(identity)}, "
        f"{calls_a_launch(identity)}, "
        f"{human(built.engine_bytes)}, in {built.seconds:.1f} s"
    )


def refuse(options: Sequence[str]) -> None:
    if options:
        raise EngineError(f"{', '.join(options)} is for TensorRT: leave it out for --target onnxruntime")


def build_onnxruntime(
    bundle: Path,
    precision: str,
    widths: Sequence[int],
    quantization: str | None,
    *,
    caches: str,
    measure_widths: bool,
    measure_jacobi: bool,
    trial: bool,
    asked: Asked,
) -> None:
    from arforge.engines import onnxruntime
    from arforge.engines.onnxruntime_job import IN_BLOCKS
    from arforge.runner.backends import kernels
    from arforge.runner.bundle import open_bundle

    built = onnxruntime.build(
        bundle,
        precision,
        widths,
        quantization,
        caches=caches,
        measure_widths=measure_widths,
        measure_jacobi=measure_jacobi,
        trial=trial,
        subjects=asked.subjects(open_bundle(bundle).model),
    )
    identity = built.identity
    loaded = "not tried" if built.load_seconds is None else f"loaded in {built.load_seconds:.2f} s"
    click.echo(
        f"built {identity['target']} {precision} for {identity['device']}: {identity['library']}, "
        f"{identity['machine']}, {loaded}"
    )
    for line in measured(identity):
        click.echo(line)
    if precision in IN_BLOCKS and kernels.worth_compiling():
        click.echo("`arforge kernels` compiles faster operators for this processor: see docs/int8.md")
