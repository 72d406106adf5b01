"""Inputs of one step, and a graph of it run on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from arforge.runner.bundle import Bundle

SLOTS, ROWS, WIDTH = 24, 2, 3
BUNDLES = ("bundle", "grouped_bundle", "arpg_bundle", "text_bundle")


def step_inputs(bundle: Bundle, filters: bool) -> dict[str, Any]:
    """A step of one guided image with random caches."""
    random = np.random.default_rng(0)
    model = bundle.model
    shape = (ROWS, model.kv_heads, SLOTS, model.head_size)
    names = [f"{kind}_cache_{index}" for index in range(model.caches) for kind in ("key", "value")]
    given: dict[str, Any] = {name: random.standard_normal(shape, np.float32) for name in names}
    given |= {
        "tokens": random.integers(0, model.vocabulary, (ROWS, WIDTH)),
        "positions": random.integers(0, model.position_rows, (ROWS, WIDTH)),
        "write_index": np.full(ROWS, 5),
        "mask": np.tile(np.tril(np.ones((WIDTH, SLOTS), bool), 5), (ROWS, 1, 1, 1)),
        "uniforms": random.random((1, WIDTH), np.float32),
        "guidance": np.full((1, WIDTH), 2, np.float32),
        "temperature": np.float32([1.3]),
        "top_k": np.array([7 if filters else 0]),
        "top_p": np.float32([0.8 if filters else 1]),
    }
    if model.family == "llamagen-t2i":
        given["condition"] = random.standard_normal((ROWS, 2, model.dim), np.float32)
        given["tokens"][:, 0] = model.ids + np.arange(2)  # a row each
        given["mask"][1, ..., :3] = False
    if model.queries:
        given["query_positions"] = random.integers(1, model.position_rows, (ROWS, WIDTH))
    return given


def run(path: Path, given: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # caches that are not bound in place
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    return found
