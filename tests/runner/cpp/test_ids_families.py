"""Lumina-mGPT, Emu3-Gen and Janus, exported from tiny folders: the C++ runner gives Python's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from tiny_llama import GRIDS

from arforge.engines import onnxruntime
from arforge.runner import Runner

SEEDS = [9, 2**64 - 1, 6]


@pytest.fixture(scope="module", params=GRIDS)
def bundle(request: pytest.FixtureRequest, ids_bundles: Callable[[str], Path]) -> Path:
    output = ids_bundles(request.param)
    onnxruntime.build(output)
    return output


def test_tokens_are_pythons(library: Any, bundle: Path) -> None:
    """With what every family can do, whole prompts and such as lack what begins the image."""
    ours = cpp_abi.Runner(library, bundle, threads=1)
    with Runner.open(bundle, threads=1) as theirs:
        facts = ours.facts()
        assert (facts.id_slots, facts.id_vocabulary) == (
            theirs.bundle.model.condition.slots,
            theirs.bundle.model.condition.vocabulary,
        )
        ids = [np.arange(1, 1 + length) for length in (4, 17, 1)]
        drawn = set()
        for schedule in [*theirs.bundle.specifications, "zipar:2", "zipar:3,cfg-interval=5"]:
            for settings in (
                {"unconditional": "image"},
                {"unconditional": "image", "prefill": "bidirectional", "greedy": True},
                {"negative_ids": np.array([3, 1, 2]), "top_k": 9},
                {"guidance": 1.0},
                {"guidance": [1.0, 3.0, 2.0], "unconditional": "image", "batch": 2},
            ):
                asked: dict[str, Any] = {"ids": ids, "seeds": SEEDS, "schedule": schedule, **settings}
                expected = theirs.generate(**asked)
                found = ours.generate(**asked)
                np.testing.assert_array_equal(found.tokens, expected.tokens)
                assert (found.steps, found.grid) == (expected.steps, expected.grid)
                drawn.add(found.tokens.tobytes())
        assert len(drawn) > 10
    ours.close()
