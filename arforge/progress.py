"""Progress bars on standard error, as functions of what is done and of how much."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

PARTS = 1000  # of a bar


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    with progress_bars(quiet=quiet) as progress:
        yield lambda done, total: progress(label, done, total)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar after another, a new one for every new thing that is being done."""
    with ExitStack() as stack:
        bar: Any = None

        def progress(what: str, done: int, total: int) -> None:
            nonlocal bar
            if quiet:
                return
            if bar is None or bar.label != what:
                stack.close()
                bar = stack.enter_context(click.progressbar(length=PARTS, label=what, file=sys.stderr))
            bar.update(PARTS * done // max(1, total) - bar.pos)

        yield progress
