"""`arforge export`."""

from __future__ import annotations

from pathlib import Path

import click

from arforge.options import PATH, Grid
from arforge.runner.command_line import command_line
from arforge.runner.errors import ArforgeError

FAMILIES = ("llamagen", "par", "arpg")
VARIANTS = ("B", "L", "XL", "XXL", "3B")


@click.command()
@click.argument("family", type=click.Choice(FAMILIES))
@click.option("--variant", type=click.Choice(VARIANTS, case_sensitive=False), help="A published size; or use --config.")
@click.option("--grid", type=Grid(), help="Token grid of the variant, such as 16x16.  [default: 24x24; arpg: 16x16]")
@click.option("--regions", type=click.Choice(["4", "16"]), help="Regions of a par variant.  [default: 4]")
@click.option("--config", type=PATH, help="Dimensions as JSON (see the README), in place of --variant.")
@click.option("--checkpoint", type=PATH, required=True, help="The authors' .pt, or .safetensors.")
@click.option("--tokenizer", type=PATH, help="The VQ tokenizer's checkpoint; without it, a bundle gives tokens only.")
@click.option("--output", type=PATH, required=True, help="The bundle to write: a directory, whole or not at all.")
@click.option("--schedule", "schedules", multiple=True, help="Store this schedule; repeatable.  [default: the usual]")
@click.option("--guidance", default=2.0, show_default=True, help="Default guidance scale of requests.")
@click.option("--temperature", default=1.0, show_default=True, help="Default temperature of requests.")
@click.option("--top-k", default=0, show_default=True, help="Default top-k of requests; 0 is off.")
@click.option("--top-p", default=1.0, show_default=True, help="Default top-p of requests; 1 is off.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle, once the new one is whole.")
def command(
    family: str,
    variant: str | None,
    grid: tuple[int, int] | None,
    regions: str | None,
    config: Path | None,
    checkpoint: Path,
    tokenizer: Path | None,
    output: Path,
    schedules: tuple[str, ...],
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
    overwrite: bool,
) -> None:
    """Turn a FAMILY checkpoint into a bundle.

    \b
    arforge export llamagen --variant L --grid 24x24 --checkpoint c2i_L_384.pt \\
        --tokenizer vq_ds16_c2i.pt --output llamagen-l.bundle
    """
    if (variant is None) == (config is None):
        raise click.UsageError("name the model's dimensions with one of --variant and --config")
    if config is not None and (grid or regions):
        raise click.UsageError("--grid and --regions go with --variant; a --config holds its own")
    if regions and family != "par":
        raise click.UsageError("--regions goes with the par family")
    try:
        from arforge.export.config import read_config, variant_config
        from arforge.export.exporter import Job, export_bundle
        from arforge.export.families import FAMILIES as KNOWN
    except ImportError as error:
        raise ArforgeError(
            f"exporting needs {error.name}: pip install 'arforge[export]' (an unpinned torch is the CUDA build; for "
            "the CPU one install torch first)"
        ) from error
    from arforge.runner.bundle import SamplerDefaults
    from arforge.runner.request import Sampling

    Sampling(guidance, temperature, top_k, top_p)  # refuses what no request could use
    kind = KNOWN[family]
    if config:
        dimensions = read_config(config, kind)
    else:
        options = {"regions": int(regions)} if regions else {}
        dimensions = variant_config(kind, str(variant), grid or kind.default_grid, **options)
    job = Job(
        family=kind,
        config=dimensions,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        output=output,
        schedules=schedules,
        sampler=SamplerDefaults(guidance, temperature, top_k, top_p),
        overwrite=overwrite,
    )
    export_bundle(job, lambda line: click.echo(line, err=True))
    click.echo(f"wrote {output}; next: {command_line('build', output, '--target', 'onnxruntime')}")
