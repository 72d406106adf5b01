"""`arforge serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from arforge.options import PATH, look_every_option, precision_option, target_option, threads_option
from arforge.serving.limits import Limits

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MEGA = 1 << 20
USUAL = Limits()
SECONDS = click.FloatRange(min=0, min_open=True)


def limit(name: str, default: int, text: str) -> Callable[[Decorated], Decorated]:
    """An option that bounds what clients may ask for."""
    return click.option(name, type=click.IntRange(1), default=default, show_default=True, help=text)


@click.command("serve")
@click.argument("bundles", type=PATH, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes, each with its own engines."
)
@click.option("--api-key-file", type=PATH, help="A file with the key that clients must bring.  [default: none]")
@limit("--batch", USUAL.batch, "Images decoded at a time.")
@limit("--waiting", USUAL.waiting, "Images that may wait; for more the answer is 429.")
@limit("--max-images", USUAL.images, "Images of one request.")
@limit("--max-prompt", USUAL.prompt, "Characters of a prompt.")
@limit("--max-body", USUAL.body // MEGA, "MiB of a request.")
@limit("--max-pixels", USUAL.pixels // MEGA, "Mi pixels of an image, in or out.")
@click.option("--timeout", type=SECONDS, default=USUAL.seconds, show_default=True, help="Until an answer; then 504.")
@click.option("--drain", type=SECONDS, default=USUAL.drain, show_default=True, help="For what runs when SIGTERM comes.")
@target_option
@precision_option
@threads_option
@look_every_option
def command(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    workers: int,
    api_key_file: Path | None,
    batch: int,
    waiting: int,
    max_images: int,
    max_prompt: int,
    max_body: int,
    max_pixels: int,
    timeout: float,
    drain: float,
    target: str,
    precision: str | None,
    threads: int | None,
    look_every: int | None,
) -> None:
    """Serve bundles over HTTP: OpenAI's images API, health, metrics, and a page to try it on.

    \b
    arforge serve fashion.bundle emoji.bundle
    curl localhost:8000/v1/images/generations -d '{"model": "fashion", "prompt": "7"}' \\
        -H 'Content-Type: application/json' -H 'Accept: image/png' -o shoe.png
    """
    from arforge.serving.key_file import read_key
    from arforge.serving.served import Opening
    from arforge.serving.server import Serving, run

    limits = Limits(
        batch=batch,
        waiting=waiting,
        images=max_images,
        body=max_body * MEGA,
        prompt=max_prompt,
        pixels=max_pixels * MEGA,
        seconds=timeout,
        drain=drain,
    )
    key = None if api_key_file is None else read_key(api_key_file)
    serving = Serving(
        tuple(str(path) for path in bundles), Opening(target, precision, threads, look_every), limits, key
    )
    run(serving, host, port, workers)
