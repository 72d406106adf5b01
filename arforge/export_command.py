"""`arforge export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from arforge.options import PATH, Grid
from arforge.runner.command_line import command_line
from arforge.runner.optional import installed, needed

if TYPE_CHECKING:
    from arforge.export.families.family import Family
    from arforge.runner.bundle import Captions, Precision


class ExportCommand(click.Command):
    """Families bring options of their own, which are known where torch is installed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *family_options()]


def family_options() -> list[click.Parameter]:
    if not all(installed(name) for name in ("torch", "safetensors")):
        return []
    owners: dict[str, list[str]] = {}
    found: dict[str, click.Parameter] = {}
    for family in known_families().values():
        for option in family.options:
            owners.setdefault(option.field, []).append(family.name)
            text = f"{option.help} Of {' and '.join(owners[option.field])}.  [default: read off the checkpoint]"
            choices = None if option.choices is None else [str(choice) for choice in option.choices]
            kind = click.IntRange(min=1) if choices is None else click.Choice(choices)
            found[option.field] = click.Option([f"--{option.field.replace('_', '-')}"], type=kind, help=text)
    return list(found.values())


def known_families() -> dict[str, Family[Any]]:
    with needed("exporting", "export"):
        from arforge.export.families import FAMILIES

        return FAMILIES


@click.command(cls=ExportCommand)
@click.argument("subject", metavar="CHECKPOINT | FAMILY")
@click.option("--checkpoint", type=PATH, help="The checkpoint, where a family is named before it.")
@click.option("--variant", help="A published size, such as L.  [default: read off the checkpoint]")
@click.option("--config", type=PATH, help="All dimensions as JSON (see the README), in place of the checkpoint's.")
@click.option("--n-head", type=click.IntRange(min=1), help="Heads of a size that is not published: tensors tell none.")
@click.option("--grid", type=Grid(), help="Token grid, such as 16x16.  [default: the checkpoint's name, if it tells]")
@click.option("--weights", help="Which of a file's weights, such as ema.  [default: model before ema]")
@click.option("--image-tokenizer", "--tokenizer", type=PATH, help="Its checkpoint; without it, there are tokens only.")
@click.option("--image-tokenizer-weights", help="Which of that file's weights.  [default: ema before model]")
@click.option(
    "--text-encoder",
    type=PATH,
    help="Folder of a T5 in the hub's layout, for prompts; without it, requests bring features.",
)
@click.option(
    "--text-precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="What its weights are stored as; T5 overflows in fp16.",
)
@click.option(
    "--captions",
    type=click.Choice(["clean", "raw"]),
    help="Whether requests' prompts are cleaned as in training, where they do not say.  [default: the authors']",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "int8", "int4"]),
    help="What the decoder's weights are stored as; int8 and int4 in blocks.  [default: the checkpoint's]",
)
@click.option(
    "--block-size",
    type=click.Choice(["256", "128", "64", "32", "16"]),
    help="Inputs that share a scale, of int8 and int4.  [default: 128, of int4 64]",
)
@click.option("--labels", type=PATH, help="Names of the classes: a line each, or a JSON list.")
@click.option("--output", type=PATH, help="The bundle to write: a folder, whole or not at all.  [default: NAME.bundle]")
@click.option("--schedule", "schedules", multiple=True, help="Store this schedule; repeatable.  [default: the usual]")
@click.option("--guidance", type=float, help="Default guidance scale of requests.  [default: the authors']")
@click.option("--temperature", type=float, help="Default temperature of requests.  [default: the authors']")
@click.option("--top-k", type=int, help="Default top-k of requests; 0 is off.  [default: the authors']")
@click.option("--top-p", type=float, help="Default top-p of requests; 1 is off.  [default: the authors']")
@click.option(
    "--sampler",
    "kind",
    type=click.Choice(["uniform", "noise"]),
    default="uniform",
    show_default=True,
    help="What tokens are drawn with: a number a cell, or one for each token that it could get, with which jacobi:L "
    "saves more.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle, once the new one is whole.")
def command(
    subject: str,
    checkpoint: Path | None,
    variant: str | None,
    config: Path | None,
    n_head: int | None,
    grid: tuple[int, int] | None,
    weights: str | None,
    image_tokenizer: Path | None,
    image_tokenizer_weights: str | None,
    text_encoder: Path | None,
    text_precision: str,
    captions: Captions | None,
    precision: Precision | None,
    block_size: str | None,
    labels: Path | None,
    output: Path | None,
    schedules: tuple[str, ...],
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    kind: Literal["uniform", "noise"],
    overwrite: bool,
    **options: str | None,
) -> None:
    """Turn a CHECKPOINT into a bundle: a file as its authors published it, shards, or a folder with one.

    Family and size are read off its tensors; they may be named too, the FAMILY in the place of the checkpoint.

    \b
    arforge export c2i_L_384.pt --image-tokenizer vq_ds16_c2i.pt
    arforge export t2i_XL_stage2_512.pt --image-tokenizer vq_ds16_t2i.pt --text-encoder flan-t5-xl/
    arforge export c2i_3B_384.pt --precision int4
    arforge export llamagen --variant L --grid 24x24 --checkpoint c2i_L_384.pt \\
        --image-tokenizer vq_ds16_c2i.pt --output llamagen-l.bundle
    """
    families = known_families()
    if variant is not None and config is not None:
        raise click.UsageError("name the model's dimensions with one of --variant and --config")
    chosen = {name: int(value) for name, value in options.items() if value is not None}
    if config is not None and (grid or n_head or chosen):
        raise click.UsageError("--grid, --n-head and a family's options go without --config, which holds its own")
    if variant is not None and n_head is not None:
        raise click.UsageError("--n-head goes without --variant, which has its own")
    if checkpoint is not None and subject not in families:
        raise click.UsageError(
            f"{subject!r} is no family ({', '.join(families)}); or name a checkpoint alone, without --checkpoint"
        )
    if checkpoint is None and subject in families and not Path(subject).exists():
        raise click.UsageError(f"which {subject} checkpoint? Name it with --checkpoint")
    from arforge.export.checkpoint import open_checkpoint
    from arforge.export.dimensions import Named, model_of
    from arforge.export.exporter import ExportJob, export_bundle
    from arforge.export.facts import read_labels
    from arforge.runner.request import Sampling

    def report(line: str) -> None:
        click.echo(line, err=True)

    named = Named(subject if checkpoint else None, variant, config, n_head, grid, chosen)
    path = checkpoint or Path(subject)
    family, dimensions = model_of(open_checkpoint(path, weights), named, report)
    usual = family.sampler(dimensions)
    sampler = replace(
        usual,
        guidance=usual.guidance if guidance is None else guidance,
        temperature=usual.temperature if temperature is None else temperature,
        top_k=usual.top_k if top_k is None else top_k,
        top_p=usual.top_p if top_p is None else top_p,
        kind=kind,
    )
    Sampling(sampler.guidance, sampler.temperature, sampler.top_k, sampler.top_p)  # refuses what no request could use
    target = output or Path(f"{bundle_name(path)}.bundle")
    job = ExportJob(
        family=family,
        config=dimensions,
        checkpoint=path,
        image_tokenizer=image_tokenizer,
        output=target,
        schedules=schedules,
        sampler=sampler,
        overwrite=overwrite,
        text_encoder=text_encoder,
        text_precision=text_precision,
        captions=captions,
        precision=precision,
        block=None if block_size is None else int(block_size),
        labels=None if labels is None else read_labels(labels),
        weights=weights,
        image_tokenizer_weights=image_tokenizer_weights,
    )
    export_bundle(job, report)
    click.echo(f"wrote {target}; next: {command_line('build', target, '--target', 'onnxruntime')}")


def bundle_name(checkpoint: Path) -> str:
    """What to call the bundle of a checkpoint: its name, or for a part or an index that of its folder."""
    from arforge.export.checkpoint_files import files_of

    if checkpoint.is_dir():
        return checkpoint.resolve().name
    return checkpoint.stem if files_of(checkpoint) == (checkpoint,) else checkpoint.resolve().parent.name
