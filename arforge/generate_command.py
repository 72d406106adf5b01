"""`arforge generate`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arforge.engine import open_built, precision_of
from arforge.options import PATH, precision_option, target_option, threads_option
from arforge.progress import progress_bar
from arforge.subjects import Asked, asked_options, how_to_ask

if TYPE_CHECKING:
    from arforge.runner.request import Subjects


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--output", "folder", type=PATH, required=True, help="Folder to fill; one that is begun is gone on with.")
@click.option("--images", type=click.IntRange(min=1), help="Rows in all.  [default: one a row of --table, or prompt]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "webdataset"]),
    default="parquet",
    show_default=True,
    help="Parquet needs pyarrow, which arforge[ray] has.",
)
@click.option("--rows", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Rows of one file.")
@click.option("--first", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Number of the first row.")
@click.option("--table", type=PATH, help="CSV or parquet with a column `class` or `prompt`: what each row is to show.")
@click.option("--schedule", help="Decoding schedule, such as ntp or zipar:16.  [default: the bundle's first]")
@asked_options
@click.option("--guidance", type=float, help="Guidance scale; 1 is off.  [default: the bundle's]")
@click.option("--temperature", type=float, help="Temperature; 0 is greedy.  [default: the bundle's]")
@click.option("--top-k", type=int, help="Sample from the K most likely tokens; 0 is off.  [default: the bundle's]")
@click.option("--top-p", type=float, help="Sample from the most likely tokens of mass P.  [default: the bundle's]")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images decoded at a time.")
@click.option("--tokens", is_flag=True, help="Write the images' tokens too.")
@click.option("--ray", "on_ray", is_flag=True, help="By workers on Ray: of RAY_ADDRESS, or of this machine.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="With --ray: workers.")
@click.option("--gpus", type=click.FloatRange(min=0), default=0, show_default=True, help="With --ray: of each worker.")
@target_option
@precision_option
@threads_option
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(
    bundle: Path,
    folder: Path,
    images: int | None,
    kind: str,
    rows: int,
    first: int,
    table: Path | None,
    schedule: str | None,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    batch: int,
    tokens: bool,
    on_ray: bool,
    workers: int,
    gpus: float,
    target: str,
    precision: str | None,
    threads: int | None,
    quiet: bool,
    asked: Asked,
) -> None:
    """Fill a folder with images of BUNDLE, any number of them, in files of --rows rows.

    A row's number is its seed. Classes or prompts are gone round if there are more rows. The same command goes on after
    a crash: no row is lost, and none is there twice. With --ray FOLDER and BUNDLE are paths on every machine.

    \b
    arforge generate fashion.bundle --output shoes --images 1000000 --class 7 --format webdataset
    arforge generate emoji.bundle --output drawn --table captions.csv --ray --workers 8
    """
    from arforge.runner.request import Request
    from arforge.serving.dataset import Job, check, filling, here
    from arforge.serving.row_files import parquet

    if not on_ray and (workers > 1 or gpus):
        raise click.UsageError("--workers and --gpus go with --ray")
    precision = precision_of(bundle, target, precision)
    opened = open_built(bundle, target, precision)
    opened.identities(target, precision)  # raises EngineError if it is not built
    subjects = subjects_of(asked.subjects(opened.model), table)
    if subjects is None:
        raise click.UsageError(f"nothing to draw: say what with --table or {how_to_ask(opened.model)}")
    settings = Request(
        schedule=schedule or opened.default_schedule,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch=batch,
    )
    job = Job(
        bundle=bundle.absolute(),
        folder=folder.absolute(),
        images=images or len(subjects.values),
        subjects=subjects,
        first=first,
        kind=kind,
        rows=rows,
        tokens=tokens,
        target=target,
        precision=precision,
        threads=threads,
        request=settings,
    )
    job = check(job, opened)
    if kind == "parquet":
        parquet("writing")  # before the work
    with ExitStack() as stack:
        shards = stack.enter_context(filling(job, opened))
        progress = stack.enter_context(progress_bar(f"{folder}", quiet=quiet))
        if on_ray:
            from arforge.serving.ray_data import on_ray as spread

            spread(job, shards, progress, workers, gpus)
        else:
            here(job, shards, progress)
    there = len(job.shards) - len(shards)
    click.echo(f"{job.images} rows in {len(job.shards)} files of {folder}, {there} of which were there")


def subjects_of(named: Subjects | None, table: Path | None) -> Subjects | None:
    """Those of the options, or of a table's rows. Raises UsageError for both."""
    from arforge.serving.table import read_table

    if table is None:
        return named
    if named is not None:
        raise click.UsageError("say what to draw by --table, or by other options")
    return read_table(table)
