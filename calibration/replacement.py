"""Replaces the int8 part of a bundle in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arforge.calibration.quantize import FOLDER, PRECISION
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.bundle.writer import file_facts, link, write_manifest
from arforge.runner.errors import BundleError


def enter(bundle: Bundle, int8: Bundle) -> tuple[str, ...]:
    """Complete the stage that holds `int8`: the bundle's other files, and a manifest.

    Returns the engines that were built from other int8 graphs; they are left out. Raises BundleError if the bundle
    is no longer what was calibrated.
    """
    if open_bundle(bundle.root) != bundle:
        raise BundleError(f"{bundle.root} has changed meanwhile: calibrate it again")
    stage = int8.root
    files = {path: facts for path, facts in bundle.files.items() if not path.startswith(f"{FOLDER}/")}
    new = file_facts(stage)
    made = tuple(graph for graph in int8.graphs if graph.precision == PRECISION)
    changed = any(bundle.files.get(graph.path) != new[graph.path] for graph in made)
    stale = [engine for engine in bundle.engines if changed and made_from_int8(bundle.identity(engine))]
    for engine in stale:
        files = {path: facts for path, facts in files.items() if Path(path).parent != Path(engine.path).parent}
    for path in files:
        link(bundle.path(path), stage / path)
    completed = replace(
        bundle,
        graphs=(*(graph for graph in bundle.graphs if graph.precision != PRECISION), *made),
        files={**files, **new},
        engines=tuple(engine for engine in bundle.engines if engine not in stale),
    )
    write_manifest(stage, completed)
    return tuple(map(str, stale))


def made_from_int8(identity: Mapping[str, Any]) -> bool:
    """Whether an engine was built from calibrated graphs; ONNX Runtime's own int8 graph comes from the float32 one."""
    return str(identity.get("graph")).startswith(f"{FOLDER}/")
