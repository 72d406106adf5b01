"""Model dimensions from a JSON file, or from a variant's name."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from arforge.export.families.family import Family
from arforge.runner.errors import CheckpointError, ScheduleError
from arforge.runner.schedules.regions import region_order

INTEGERS = ("dim", "n_layer", "n_head", "vocab_size", "num_classes", "n_kv_head", "multiple_of", "regions")
NUMBERS = ("norm_eps", "rope_base", "ffn_dim_multiplier")
REQUIRED = ("dim", "n_layer", "n_head", "vocab_size", "num_classes", "grid")
MAX_SIDE = 1024


def read_config(path: Path, family: Family) -> Any:
    """Read and check dimensions. Raises CheckpointError that names the field, what it is and what was expected."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object with {', '.join(REQUIRED)}")
    known = [field.name for field in fields(family.config)]
    missing = [name for name in REQUIRED if values.get(name) is None]
    unknown = [name for name in values if name not in known]
    if missing or unknown:
        parts = [
            f"lacks {', '.join(missing)}" if missing else "",
            f"has unknown {', '.join(unknown)}" if unknown else "",
        ]
        raise CheckpointError(f"{path} {' and '.join(p for p in parts if p)}; known: {', '.join(known)}")
    given = {name: value for name, value in values.items() if value is not None}
    return check_config(family.config(**{**given, "grid": _grid(given["grid"], path)}), str(path))


def variant_config(family: Family, name: str, grid: tuple[int, int], **options: Any) -> Any:
    """The dimensions of a published size. Raises CheckpointError where the family has none of that name."""
    if name not in family.variants:
        known = ", ".join(family.variants)
        raise CheckpointError(f"{family.name} has no variant {name}: use one of {known}, or --config")
    layers, heads, dim = family.variants[name]
    config = family.config(dim=dim, n_layer=layers, n_head=heads, grid=grid, **options)
    return check_config(config, f"variant {name}")


def variant_of(family: Family, config: Any) -> str | None:
    """The name of the published size that these dimensions are."""
    for name, (layers, heads, dim) in family.variants.items():
        if config == replace(config, dim=dim, n_layer=layers, n_head=heads, **published(family)):
            return name
    return None


def published(family: Family) -> dict[str, Any]:
    """The other dimensions, which all published sizes share."""
    shared = ("vocab_size", "num_classes", "n_kv_head", "norm_eps", "rope_base", "multiple_of", "ffn_dim_multiplier")
    return {field.name: field.default for field in fields(family.config) if field.name in shared}


def check_config(config: Any, where: str) -> Any:
    """Raise CheckpointError unless the dimensions make a model."""

    def require(fine: bool, what: str) -> None:
        if not fine:
            raise CheckpointError(f"{where}: {what}")

    for name in INTEGERS:
        value: Any = getattr(config, name, None)
        if not (value is None and name in ("n_kv_head", "regions")):
            require(type(value) is int and 0 < value < 2**24, f"{name} must be a positive whole number, not {value!r}")
    for name in NUMBERS:
        value = getattr(config, name)
        if not (value is None and name == "ffn_dim_multiplier"):
            fine = type(value) in (int, float) and math.isfinite(value) and value > 0
            require(fine, f"{name} must be a positive number, not {value!r}")
    require(config.dim % config.n_head == 0, f"n_head {config.n_head} does not divide dim {config.dim}")
    require(config.n_head % config.kv_heads == 0, f"n_kv_head {config.kv_heads} does not divide n_head {config.n_head}")
    require(
        config.head_size % 4 == 0,
        f"head size {config.head_size} (dim / n_head) must be a multiple of 4 for 2-D rotary positions",
    )
    if hasattr(config, "regions"):
        try:
            region_order(config.grid, config.regions)
        except ScheduleError as error:
            raise CheckpointError(f"{where}: {error}") from None
    if config.caches != config.n_layer:
        require(config.n_layer % 2 == 0, f"n_layer {config.n_layer} must be even: half the layers are cross-attention")
        require(config.n_kv_head in (None, config.n_head), "n_kv_head must be n_head: this family has no grouped heads")
    require(max(config.grid) <= MAX_SIDE, f"grid {config.grid} is larger than {MAX_SIDE} a side")
    return config


def _grid(value: Any, path: Path) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)):
        raise CheckpointError(f"{path}: grid must be [rows, columns], not {value!r}")
    return value[0], value[1]
