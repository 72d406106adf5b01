"""Reads JSON that somebody else wrote, strictly: what two parsers could take for different things is refused.

Sizes are bounded before a file is read, and depth before a value is used, so that no later code meets either.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from arforge.runner.errors import ArforgeError

MAX_BYTES = 1 << 24
MAX_DEPTH = 32


def read_json(path: Path, error: type[ArforgeError]) -> Any:
    """The value of a UTF-8 JSON file of at most MAX_BYTES. Raises `error` for anything else."""
    return parse_json(read_small(path, MAX_BYTES, error), str(path), error)


def read_small(path: Path, most: int, error: type[ArforgeError]) -> bytes:
    """The content of a file of at most `most` bytes; a larger one is not read. Raises `error`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= most else None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from None
    if data is None:
        raise error(f"{path} has {size} bytes, more than {most}")
    return data


def parse_json(data: bytes, name: str, error: type[ArforgeError]) -> Any:
    """The value of strict JSON: no NaN or infinity, also as 1e999, no key twice, MAX_DEPTH levels. Raises `error`."""
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"{name} is not valid JSON: {problem}") from None
    if _deeper(value, MAX_DEPTH):
        raise error(f"{name} is nested more than {MAX_DEPTH} levels deep")
    return value


def check_schema(value: Any, schema: str, name: str, error: type[ArforgeError]) -> None:
    """Raise `error` unless `value` follows the JSON Schema `schema`, a file of `arforge.runner.bundle`."""
    validate, invalid = _validator(schema)
    try:
        validate(value)
    except invalid as problem:
        raise error(f"{name} does not follow the format: {problem}") from None


def floats(value: Any, place: str = "") -> Iterator[str]:
    """Where `value` holds a float: JSON Schema takes 2.0 for an integer, a runner must not."""
    if isinstance(value, float):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from floats(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from floats(item, place)


@lru_cache(maxsize=4)
def _validator(schema: str) -> tuple[Callable[[Any], Any], type[Exception]]:
    import fastjsonschema

    text = resources.files("arforge.runner.bundle").joinpath(schema).read_text("utf-8")
    return fastjsonschema.compile(json.loads(text)), fastjsonschema.JsonSchemaException


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is out of range")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return result


def _deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested more than `levels` deep; level by level, so that no stack grows."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for item in layer
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True
