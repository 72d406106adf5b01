"""`arforge build`."""

from __future__ import annotations

from pathlib import Path

import click

from arforge.options import PATH, Numbers

TARGETS = ("onnxruntime",)
PRECISIONS = ("fp32",)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--width",
    "widths",
    type=Numbers(),
    multiple=True,
    help="Pad steps to these numbers of tokens only; repeatable.  [default: every width as it is]",
)
def command(bundle: Path, target: str, precision: str, widths: tuple[tuple[int, ...], ...]) -> None:
    """Build an engine of BUNDLE for this machine, and enter it in the bundle.

    The build loads the graph, runs a trial step, and proves that the caches are updated in place.
    """
    from arforge.engines import onnxruntime

    built = onnxruntime.build(bundle, precision, [width for group in widths for width in group])
    identity = built.identity
    click.echo(
        f"built {target} {precision} for {identity['device']}: {identity['library']}, {identity['machine']}, "
        f"loaded in {built.load_seconds:.2f} s"
    )
