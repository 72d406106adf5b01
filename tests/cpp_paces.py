"""Requests whose images get on at paces of their own, to the C++ and the Python runner."""

from __future__ import annotations

from typing import Any

import cpp_abi
import numpy as np
from tiny import TEXT_CONFIG
from tiny_ids import prompt_of

from arforge.runner import Runner

BUNDLES = {"classes": "bundle", "features": "text_bundle", "ids": "ids_bundle"}
SEEDS = [5, 1, 2**64 - 1, 2, 6, 5]
SETTINGS: list[dict[str, Any]] = [
    {"guidance": 2.5, "top_k": 12},
    {"guidance": [1.0, 3.0, 1.0, 2.0, 5.0, 3.0], "temperature": [1.0, 0.0, 0.7, 1.3, 1.0, 0.0], "batch": 4},
]


def asked(kind: str) -> dict[str, Any]:
    """Six images, of prompts of unequal lengths."""
    if kind == "classes":
        return {"classes": list(range(6)), "seeds": SEEDS}
    if kind == "ids":
        return {"ids": [prompt_of(6 + 3 * index, seed=index) for index in range(6)], "seeds": SEEDS}
    random = np.random.default_rng(0)
    features = [0.5 * random.standard_normal((1 + 4 * n, TEXT_CONFIG.caption_dim), np.float32) for n in range(6)]
    return {"features": features, "seeds": SEEDS}


def compare(ours: cpp_abi.Runner, theirs: Runner, **settings: Any) -> cpp_abi.Result:
    """What C++ gives, which is what Python does, to the calls of each image."""
    expected, found = theirs.generate(**settings), ours.generate(**settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert found.steps == expected.steps
    return found
