"""`arforge verify`."""

from __future__ import annotations

from pathlib import Path

import click

from arforge.options import PATH
from arforge.runner.optional import installed


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--schedule", "schedules", multiple=True, help="Compare logits on it; repeatable.  [default: all stored]")
@click.option("--max-steps", type=click.IntRange(min=1), default=64, show_default=True, help="Steps compared of each.")
@click.option("--checkpoint", type=PATH, help="Also compare the stored weights with this checkpoint.")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt-rtx", "tensorrt"]),
    help="Look into its engines alone, which must be there.  [default: all, as far as their library is installed]",
)
@click.option("--no-torch", is_flag=True, help="Leave out the comparison with the torch module.")
def command(
    bundle: Path,
    schedules: tuple[str, ...],
    max_steps: int,
    checkpoint: Path | None,
    target: str | None,
    no_torch: bool,
) -> None:
    """Check BUNDLE: structure, hashes, schedules, graphs and engines.

    Where the export extra is installed, also the graph's logits against the torch module, step by step.
    """
    from arforge.engines.verify import verify_bundle
    from arforge.runner.errors import ArforgeError

    opened = verify_bundle(bundle, lambda line: click.echo(f"ok  {line}"), target)
    missing = [name for name in ("torch", "onnx") if not installed(name)]
    if missing and (checkpoint or schedules):
        raise ArforgeError(f"comparing with torch needs {', '.join(missing)}: pip install 'arforge[export]'")
    if no_torch or missing:
        reason = "as asked" if no_torch else f"no {', '.join(missing)}; pip install 'arforge[export]'"
        click.echo(f"--  torch module: not compared ({reason})")
        return
    from arforge.export.verify import check_provenance, check_weights, compare_condition, compare_logits

    if checkpoint:
        click.echo(f"ok  weights: {check_weights(opened, checkpoint)} tensors equal {checkpoint.name}")
        click.echo(f"ok  provenance: {check_provenance(opened, checkpoint)}")
    error = compare_condition(opened)
    if error is not None:
        click.echo(f"ok  torch module, rows of prompts: within {error:.1e} of the largest")
    for schedule in schedules or opened.specifications:
        found = compare_logits(opened, schedule, max_steps)
        click.echo(
            f"ok  torch module, {schedule}: {found.steps} steps, logits within {found.largest_error:.1e}, "
            f"most likely token the same for {100 * found.same_tokens:.2f} % of cells"
        )
