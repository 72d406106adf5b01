"""The `arforge` command: one module a command, loaded when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Any

import click

from arforge.runner.errors import ArforgeError
from arforge.version import VERSION

COMMANDS = {
    "export": "Turn a checkpoint into a bundle.",
    "calibrate": "Give a bundle int8 graphs.",
    "build": "Build an engine of a bundle.",
    "run": "Generate images.",
    "evaluate": "Judge schedules against real images.",
    "profile": "Show where the time of a schedule goes.",
    "schedule": "Show, dump or plot a decoding schedule.",
    "inspect": "Show what a bundle holds.",
    "verify": "Check a bundle and its engines.",
}


class Commands(click.Group):
    """Loads a command's module when it is named, and turns arforge's errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"arforge.{name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no text
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except ArforgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            raise click.ClickException(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="arforge")
def main() -> None:
    """A deployment compiler for autoregressive image generators.

    A checkpoint becomes a bundle (export), a bundle gets engines (build), an engine makes images (run).
    """


if __name__ == "__main__":
    main()
