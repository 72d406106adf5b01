"""`arforge kernels`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from arforge.engines.kernels import compile_kernels
from arforge.options import PATH
from arforge.runner.backends.kernels import PLACE, runs_here, usual_place


@click.command()
@click.option(
    "--headers", type=PATH, help="Folder of ONNX Runtime's C++ headers.  [default: $ONNXRUNTIME_ROOT/include]"
)
@click.option("--output", type=PATH, help="Library to write.  [default: where every command looks for it]")
def command(headers: Path | None, output: Path | None) -> None:
    """Compile operators of int8 and int4 engines for x86-64 with VNNI, with $CXX or the system's compiler.

    Afterwards they take the place of ONNX Runtime's in every engine of the user, until ARFORGE_KERNELS=off says
    otherwise; that variable may also name a library elsewhere.
    """
    if headers is None:
        root = os.environ.get("ONNXRUNTIME_ROOT")
        if root is None:
            raise click.UsageError("name a folder of ONNX Runtime's headers: --headers FOLDER, or set ONNXRUNTIME_ROOT")
        headers = Path(root) / "include"
    path = output or usual_place()
    compile_kernels(headers, path)
    known = "" if output is None else f"; use it with {PLACE}={path}"
    what = "" if runs_here(path) else ", but this processor has no VNNI: ONNX Runtime's operators stay"
    click.echo(f"{path}{what}{known}")
