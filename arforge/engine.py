"""Opens the bundle of a command that runs an engine; ONNX Runtime's default one is built where it is missing."""

from __future__ import annotations

from pathlib import Path

import click

from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.errors import ArforgeError, BundleError, EngineError
from arforge.runner.optional import needed
from arforge.runner.targets import default_precision

BUILT_UNASKED = "onnxruntime"


def precision_of(path: Path, target: str, precision: str | None) -> str:
    """The precision of the engine that a command opens: as asked for, or the usual one of the bundle."""
    return precision or default_precision(target, open_bundle(path).model.stored_precision)


def open_built(path: Path, target: str, precision: str) -> Bundle:
    """The bundle, with the engine that a command is about to open; a note on standard error where it is built now.

    Other engines than ONNX Runtime's of the default precision are left to `arforge build`, and to whoever opens them.
    Raises EngineError if the engine cannot be built, and BundleError as `open_bundle` does.
    """
    bundle = open_bundle(path)
    usual = default_precision(target, bundle.model.stored_precision)
    if target != BUILT_UNASKED or precision != usual or has_engine(bundle, target, precision):
        return bundle
    missing = f"{path} has no {target} {precision} engine"
    with needed(f"{missing}, and building it", "build", EngineError):
        from arforge.engines import onnxruntime, onnxruntime_graph  # noqa: F401 (the second is what may be missing)
    click.echo(f"{missing} yet: building it", err=True)
    try:
        built = onnxruntime.build(path, precision)
    except ArforgeError as error:
        if has_engine(open_bundle(path), target, precision):  # by another process, meanwhile
            return open_bundle(path)
        if isinstance(error, BundleError):
            raise EngineError(f"{missing}, and it cannot be built here: {error}") from error
        raise
    click.echo(f"built {target} {precision}: {built.identity['library']}", err=True)
    return open_bundle(path)


def has_engine(bundle: Bundle, target: str, precision: str) -> bool:
    return any((engine.target, engine.precision) == (target, precision) for engine in bundle.engines)
