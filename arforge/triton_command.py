"""`arforge triton`."""

from __future__ import annotations

from pathlib import Path

import click

from arforge.engine import open_built, precision_of
from arforge.options import PATH, precision_option, target_option, threads_option


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--output", "repository", type=PATH, required=True, help="Model repository: new, or one to add to.")
@click.option("--name", help="Of the model.  [default: the bundle's, without .bundle]")
@click.option(
    "--max-batch-size", type=click.IntRange(1, 1024), default=8, show_default=True, help="Images decoded at a time."
)
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that hold the model, on each GPU for TensorRT.",
)
@click.option("--waiting", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=1e6),
    default=60.0,
    show_default=True,
    help="Seconds that a request may wait; it can ask for less itself.",
)
@click.option("--previews", is_flag=True, help="Also write a model NAME_stream, which sends partial images.")
@click.option(
    "--prompts",
    type=click.Choice(["bytes", "uint8"]),
    default="bytes",
    show_default=True,
    help="How prompts come in: as texts, or as arrays of their UTF-8 bytes.",
)
@click.option("--by-path", is_flag=True, help="Leave the bundle where it is, and name its place.  [default: copy it]")
@click.option(
    "--environment", type=PATH, help="Virtual environment that has arforge, as the server sees it.  [default: its own]"
)
@target_option
@precision_option
@threads_option
def command(
    bundle: Path,
    repository: Path,
    name: str | None,
    max_batch_size: int,
    instances: int,
    waiting: int,
    timeout: float,
    previews: bool,
    prompts: str,
    by_path: bool,
    environment: Path | None,
    target: str,
    precision: str | None,
    threads: int | None,
) -> None:
    """Write BUNDLE as a model for NVIDIA's Triton Inference Server, on its Python backend.

    \b
    arforge triton fashion.bundle --output models --previews
    tritonserver --model-repository models
    """
    from arforge.serving.triton.repository import Model, write_models

    precision = precision_of(bundle, target, precision)
    opened = open_built(bundle, target, precision)
    opened.identities(target, precision)  # raises EngineError if it is not built
    model = Model(
        name=name or bundle.resolve().name.removesuffix(".bundle"),
        target=target,
        precision=precision,
        threads=threads,
        max_batch_size=max_batch_size,
        instances=instances,
        waiting=waiting,
        timeout=timeout,
        prompts=prompts,
        environment=environment,
        by_path=by_path,
    )
    for folder in write_models(opened, model, repository, previews=previews):
        click.echo(f"wrote {folder}")
