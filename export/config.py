"""Model dimensions from a JSON file, or from a variant's name."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from arforge.export.llamagen import VARIANTS, LlamaGenConfig
from arforge.runner.errors import CheckpointError

INTEGERS = ("dim", "n_layer", "n_head", "vocab_size", "num_classes", "n_kv_head", "multiple_of")
NUMBERS = ("norm_eps", "rope_base", "ffn_dim_multiplier")
REQUIRED = ("dim", "n_layer", "n_head", "vocab_size", "num_classes", "grid")
MAX_SIDE = 1024


def read_config(path: Path) -> LlamaGenConfig:
    """Read and check dimensions. Raises CheckpointError that names the field, what it is and what was expected."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object with {', '.join(REQUIRED)}")
    known = [field.name for field in fields(LlamaGenConfig)]
    missing = [name for name in REQUIRED if name not in values]
    unknown = [name for name in values if name not in known]
    if missing or unknown:
        parts = [
            f"lacks {', '.join(missing)}" if missing else "",
            f"has unknown {', '.join(unknown)}" if unknown else "",
        ]
        raise CheckpointError(f"{path} {' and '.join(p for p in parts if p)}; known: {', '.join(known)}")
    given = {name: value for name, value in values.items() if value is not None}
    return check_config(LlamaGenConfig(**{**given, "grid": _grid(given["grid"], path)}), str(path))


def variant_config(name: str, grid: tuple[int, int]) -> LlamaGenConfig:
    return check_config(LlamaGenConfig.variant(name, grid), f"variant {name}")


def variant_of(config: LlamaGenConfig) -> str | None:
    """The name of the published size that these dimensions are."""
    for name in VARIANTS:
        if config == LlamaGenConfig.variant(name, config.grid):
            return name
    return None


def check_config(config: LlamaGenConfig, where: str) -> LlamaGenConfig:
    """Raise CheckpointError unless the dimensions make a model."""

    def require(fine: bool, what: str) -> None:
        if not fine:
            raise CheckpointError(f"{where}: {what}")

    for name in INTEGERS:
        value: Any = getattr(config, name)
        if not (value is None and name == "n_kv_head"):
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
    require(max(config.grid) <= MAX_SIDE, f"grid {config.grid} is larger than {MAX_SIDE} a side")
    return config


def _grid(value: Any, path: Path) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)):
        raise CheckpointError(f"{path}: grid must be [rows, columns], not {value!r}")
    return value[0], value[1]
