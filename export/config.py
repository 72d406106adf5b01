"""Model dimensions from a JSON file, or from a variant's name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from arforge.export.families.family import C, Configuration, Family, Grid
from arforge.runner.errors import CheckpointError

MAX_SIDE = 1024
MAX_INTEGER = 2**24


def read_config(path: Path, family: Family[C]) -> C:
    """Read and check dimensions. Raises CheckpointError that names the field, what it is and what was expected."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object with {', '.join(family.required)}")
    known = [field.name for field in fields(family.config)]
    missing = [name for name in family.required if values.get(name) is None]
    unknown = [name for name in values if name not in known]
    if missing or unknown:
        parts = [
            f"lacks {', '.join(missing)}" if missing else "",
            f"has unknown {', '.join(unknown)}" if unknown else "",
        ]
        raise CheckpointError(f"{path} {' and '.join(p for p in parts if p)}; known: {', '.join(known)}")
    given = {name: value for name, value in values.items() if value is not None}
    return make_config(family, {**given, "grid": _grid(given["grid"], path)}, str(path))


def variant_config(family: Family[C], name: str, grid: Grid, **options: Any) -> C:
    """The dimensions of a published size. Raises CheckpointError if the family has none of that name."""
    known = {variant.lower(): variant for variant in family.variants}
    if name.lower() not in known:
        raise CheckpointError(
            f"{family.name} has no variant {name}: use one of {', '.join(family.variants)}, or --config"
        )
    size = family.variants[known[name.lower()]]
    return make_config(family, {**size._asdict(), "grid": grid, **options}, f"variant {name}")


def variant_of(family: Family[C], config: C) -> str | None:
    """The name of the published size that these dimensions are."""
    for name, size in family.variants.items():
        if config == replace(config, **size._asdict(), **published(family)):
            return name
    return None


def published(family: Family[Any]) -> dict[str, Any]:
    """The other dimensions, which all published sizes share."""
    chosen = {option.field for option in family.options}
    shared = (field for field in fields(family.config) if field.default is not MISSING and field.name not in chosen)
    return {field.name: field.default for field in shared}


def make_config(family: Family[C], values: Mapping[str, Any], where: str) -> C:
    """The configuration of these fields. Raises CheckpointError, which begins with `where`, if they make no model."""
    return check_config(family.config(**values), where)


def check_config(config: C, where: str) -> C:
    """The configuration itself. Raises CheckpointError, which begins with `where`, unless it makes a model."""
    for name, (kind, optional) in _field_types(type(config)).items():
        value = getattr(config, name)
        if value is None and optional:
            continue
        if kind is int and not (type(value) is int and 0 < value < MAX_INTEGER):
            raise CheckpointError(f"{where}: {name} must be a positive whole number, not {value!r}")
        if kind is bool and type(value) is not bool:
            raise CheckpointError(f"{where}: {name} must be true or false, not {value!r}")
        if kind is float and not (type(value) in (int, float) and math.isfinite(value) and value > 0):
            raise CheckpointError(f"{where}: {name} must be a positive number, not {value!r}")
    for problem in config.problems():
        raise CheckpointError(f"{where}: {problem}")
    if max(config.grid) > MAX_SIDE:
        raise CheckpointError(f"{where}: grid {config.grid} is larger than {MAX_SIDE} a side")
    return config


@lru_cache(maxsize=32)
def _field_types(config: type[Configuration]) -> dict[str, tuple[type, bool]]:
    """Of each number and each choice of a configuration its type, and whether None will do."""
    hints = get_type_hints(config)
    types = {field.name: hints[field.name] for field in fields(config)}
    return {
        name: (kind, hint != kind)
        for name, hint in types.items()
        for kind in (int, float, bool)
        if hint in (kind, kind | None)
    }


def _grid(value: Any, path: Path) -> Grid:
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)):
        raise CheckpointError(f"{path}: grid must be [rows, columns], not {value!r}")
    return value[0], value[1]
