"""`arforge run`."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arforge.engine import open_built, precision_of
from arforge.options import PATH, Grid, Numbers, look_every_option, precision_option, target_option, threads_option
from arforge.progress import progress_bar
from arforge.runner.errors import RequestError
from arforge.subjects import Asked, asked_options, how_to_ask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arforge.runner.images import Page
    from arforge.runner.preview import Partial, Preview


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--schedule", help="Decoding schedule, such as ntp or zipar:16.  [default: the bundle's first]")
@asked_options
@click.option("--seed", "seeds", type=Numbers(), multiple=True, help="One seed an image, or the first.  [default: 0]")
@click.option("--samples", type=click.IntRange(min=1), help="Images in all, going round the classes.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is off.  [default: the bundle's]")
@click.option("--temperature", type=float, help="Temperature; 0 is greedy.  [default: the bundle's]")
@click.option("--top-k", type=int, help="Sample from the K most likely tokens; 0 is off.  [default: the bundle's]")
@click.option("--top-p", type=float, help="Sample from the most likely tokens of mass P.  [default: the bundle's]")
@click.option("--greedy", is_flag=True, help="Take the most likely token (temperature 0).")
@click.option("--batch", default=32, show_default=True, help="Images decoded at a time.")
@target_option
@precision_option
@threads_option
@look_every_option
@click.option("--output", type=PATH, help="PNG grid of the images.")
@click.option("--columns", type=click.IntRange(min=1), help="Images a row of the grid.  [default: nearly square]")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, show_default=True, help="Size of a pixel in the grid.")
@click.option("--npz", type=PATH, help="Array file for FID evaluators: arr_0, uint8 [images, height, width, 3].")
@click.option("--tokens", type=PATH, help="Tokens as .npy: int64 [images, cells], raster order.")
@click.option("--keep", type=PATH, help="Image to keep parts of, for editing and outpainting (models of random order).")
@click.option("--mask", type=PATH, help="Of the size of --keep, white where to paint.  [default: its transparency]")
@click.option("--grid", type=Grid(), help="Tokens of a larger image, decoded in windows (models of random order).")
@click.option("--preview", type=PATH, help="PNG grid of the images as they are made, written again and again.")
@click.option("--preview-every", type=click.IntRange(min=1), default=16, show_default=True, help="Steps between those.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(
    bundle: Path,
    schedule: str | None,
    seeds: tuple[tuple[int, ...], ...],
    samples: int | None,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    greedy: bool,
    batch: int,
    target: str,
    precision: str | None,
    threads: int | None,
    look_every: int | None,
    output: Path | None,
    columns: int | None,
    zoom: int,
    npz: Path | None,
    tokens: Path | None,
    keep: Path | None,
    mask: Path | None,
    grid: tuple[int, int] | None,
    preview: Path | None,
    preview_every: int,
    quiet: bool,
    asked: Asked,
) -> None:
    """Generate images from BUNDLE: one a class or prompt, or --samples in all.

    A seed decides its image alone: batch, order and machine load change nothing.

    \b
    arforge run llamagen-l.bundle --schedule zipar:16 --class 207,360 --seed 0 --guidance 2 --output out.png
    arforge run llamagen-t2i.bundle --prompt "a red heart" --samples 4 --output hearts.png
    """
    from arforge.runner.canvas import nothing_known
    from arforge.runner.images import Add, Page, npz_of, save_tokens
    from arforge.runner.inpainting import known_tokens
    from arforge.runner.output import check_outputs
    from arforge.runner.runner import Runner
    from arforge.runner.schedules.specification import require_keeping, require_order

    if output is None and npz is None and tokens is None:
        raise click.UsageError("nothing to write: name --output, --npz or --tokens")
    if greedy and temperature:
        raise click.UsageError("--greedy is temperature 0: leave out one of --greedy and --temperature")
    if mask and not keep:
        raise click.UsageError("--mask says what of an image to paint: name the image with --keep")
    check_outputs({"--output": output, "--npz": npz, "--tokens": tokens, "--preview": preview})
    precision = precision_of(bundle, target, precision)
    model = open_built(bundle, target, precision).model
    subjects = asked.subjects(model)
    if subjects is None:
        raise click.UsageError(f"nothing to draw: say what with {how_to_ask(model)}")
    images = samples or len(subjects.values)
    numbers = spread_seeds([seed for group in seeds for seed in group], images)
    page = Page(images, columns) if output or preview else None
    with ExitStack() as stack:
        runner = stack.enter_context(Runner.open(bundle, target, precision, threads, look_every))
        if runner.bundle.image_tokenizer is None and (output or npz or preview):
            raise RequestError(
                f"{bundle} has no image tokenizer and gives tokens only: use --tokens, or export with --tokenizer"
            )
        schedule = schedule or runner.bundle.default_schedule
        known = None if grid is None else nothing_known(grid)
        if keep:
            require_order(schedule, runner.bundle.model.order)
            require_keeping(schedule)
            known = known_tokens(runner, keep, mask, grid)
        receivers: list[Add] = [page.add] if page else []
        if npz:
            receivers.append(stack.enter_context(npz_of(npz, images)))

        def receive(pixels: NDArray[np.uint8]) -> None:
            for add in receivers:
                add(pixels)

        progress = stack.enter_context(progress_bar(schedule, quiet=quiet))
        device = runner.device
        result = runner.generate(
            **subjects.take(range(images)),
            seeds=numbers,
            schedule=schedule,
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            greedy=greedy,
            batch=batch,
            known=known,
            progress=progress,
            preview=shown(preview, page, preview_every, zoom),
            images=receive if receivers else False,
        )
        if tokens:
            save_tokens(tokens, result.tokens)
    save_pages(page, (output, preview), zoom)
    each = 1000 * (result.condition_seconds + result.seconds + result.image_seconds) / images
    click.echo(
        f"{images} images, {schedule}: {result.steps} steps, {each:.1f} ms an image "
        f"({target} {precision}, batch {min(batch, images)}, {device})"
    )


def save_pages(page: Page | None, paths: tuple[Path | None, ...], zoom: int) -> None:
    from arforge.runner.images import save_page

    for path in paths:
        if page and path:
            save_page(path, page.pixels, zoom)


def shown(path: Path | None, page: Page | None, steps: int, zoom: int) -> Preview | None:
    """Writes, every so many steps, the page with the images that are being made behind those that are done."""
    from arforge.runner.images import save_page
    from arforge.runner.preview import every

    if path is None or page is None:
        return None

    def show(partial: Partial) -> None:
        so_far = deepcopy(page)
        so_far.add(partial.pixels())
        save_page(path, so_far.pixels, zoom)

    return every(steps, show)


def spread_seeds(seeds: list[int], images: int) -> list[int]:
    """The seed of each image: as given, or counting up from the only one."""
    if len(seeds) > 1:
        return seeds
    first = seeds[0] if seeds else 0
    return list(range(first, first + images))
