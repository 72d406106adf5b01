"""Reads the identity of an engine, `engine-HASH.json`: what it was made from, by what, for what."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from arforge.runner.bundle.facts import BuiltEngine
from arforge.runner.errors import EngineError
from arforge.runner.json_file import check_schema, floats, read_json

SCHEMAS = {
    "onnxruntime": "onnxruntime-identity.schema.json",
    "tensorrt": "tensorrt-identity.schema.json",
    "tensorrt-rtx": "tensorrt-identity.schema.json",
}
COUNTS = (
    *("widths", "exact_width", "cache_width", "prefill_widths", "slots", "profiles", "options"),
    *("copied_cache_bytes", "memory"),
    *("loop_inputs", "loop_profiles", "table_sizes", "table_profiles"),
)
SAME = ("target", "precision", "device")
TENSORRT_FILES = (
    *("lowered", "engine", "decoder", "layers", "timing_cache"),
    *("loop", "loop_graph", "loop_layers", "table", "table_graph", "table_layers"),
)
# Files of the engine itself. What it was made from is compared by its hash when the engine is used.
OWN = {
    "onnxruntime": ("weights",),
    "tensorrt": TENSORRT_FILES,
    "tensorrt-rtx": TENSORRT_FILES,
}


def read_identity(root: Path, engine: BuiltEngine, files: Container[str]) -> dict[str, Any]:
    """The identity of an engine that the manifest lists, whose path lies below `root`.

    Raises EngineError unless it follows its target's JSON Schema, is of that kind, and names only `files`.
    """
    path, target = root / engine.path, engine.target
    identity = read_json(path, EngineError)
    if not isinstance(identity, dict):
        raise EngineError(f"{path} is not an engine identity: rebuild the engine")
    check_schema(identity, SCHEMAS[target], str(path), EngineError)
    windows = [[one.get("images"), one["inputs"]] for one in identity.get("jacobi", ())]
    for place in floats({"jacobi": windows, **{key: identity.get(key) for key in COUNTS}}):
        raise EngineError(f"{path} does not follow the format: {place} must be a whole number, without a point")
    for key, listed in zip(SAME, engine.key, strict=True):
        if identity[key] != listed:
            raise EngineError(f"{path} is for {key} {identity[key]}, the manifest says {listed}: rebuild the engine")
    for key in OWN[target]:
        if identity.get(key) is not None and identity[key] not in files:
            raise EngineError(
                f"{path}: {key} {identity[key]!r} is not listed among the bundle's files: rebuild the engine"
            )
    return identity
