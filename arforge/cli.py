"""The `arforge` command: one module a command, loaded when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from copy import copy
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

import click

from arforge.runner.errors import ArforgeError
from arforge.runner.optional import needed
from arforge.version import VERSION


class Entry(NamedTuple):
    help: str
    doing: str  # "building needs onnx-ir": what a missing package is needed for
    extra: str  # that has the packages which the command needs


COMMANDS = {
    "export": Entry("Turn a checkpoint into a bundle.", "exporting", "export"),
    "calibrate": Entry("Give a bundle int8 graphs.", "calibrating", "build"),
    "build": Entry("Build an engine of a bundle.", "building", "build"),
    "kernels": Entry("Compile operators of int8 and int4 engines for this processor.", "compiling", "cpu"),
    "run": Entry("Generate images.", "running", "cpu"),
    "serve": Entry("Serve bundles over HTTP.", "serving", "serve"),
    "evaluate": Entry("Judge schedules against real images.", "evaluating", "evaluate"),
    "profile": Entry("Show where the time of a schedule goes.", "profiling", "cpu"),
    "schedule": Entry("Show, dump or plot a decoding schedule.", "showing a schedule", "cpu"),
    "inspect": Entry("Show what a bundle holds.", "inspecting", "cpu"),
    "generate": Entry("Fill a folder with any number of images.", "generating", "cpu"),
    "triton": Entry("Write a model for Triton Inference Server.", "writing a model", "cpu"),
    "verify": Entry("Check a bundle and its engines.", "verifying", "build"),
}
OWN_EXTRA = ("tensorrt-rtx", "tensorrt")  # targets


class Commands(click.Group):
    """Loads a command's module when it is named, and turns arforge's errors and missing packages into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = copy(import_module(f"arforge.{name}_command").command)
        assert command.callback is not None
        command.callback = guarded(COMMANDS[name], command.callback)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

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


def guarded(entry: Entry, callback: Callable[..., Any]) -> Callable[..., Any]:
    """A command's function that says which extra has a package that it lacks."""

    @wraps(callback)
    def call(**options: Any) -> Any:
        target = options.get("target")
        with needed(entry.doing, target if target in OWN_EXTRA else entry.extra):
            return callback(**options)

    return call


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="arforge")
def main() -> None:
    """A deployment compiler for autoregressive image generators.

    A checkpoint becomes a bundle (export), a bundle gets engines (build), an engine makes images (run).
    """


if __name__ == "__main__":
    main()
