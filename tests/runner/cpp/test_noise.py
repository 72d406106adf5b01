"""Bundles that draw by noise in C++: Python's tokens, of every schedule, and as many calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest

from arforge.runner import Runner

CLASSES, SEEDS = [3, 1, 4, 1, 5], [9, 2**64 - 1, 6, 5, 0]
SETTINGS: list[dict[str, Any]] = [
    {"guidance": 2.0},
    {"guidance": 1.0, "temperature": 1.4},
    {"guidance": 1.5, "temperature": 0.7, "top_k": 9, "top_p": 0.9},
    {"guidance": 2.0, "greedy": True},
]


@pytest.fixture(scope="module")
def ours(library: Any, noise_bundle: Path) -> Iterator[cpp_abi.Runner]:
    runner = cpp_abi.Runner(library, noise_bundle, threads=1)
    yield runner
    runner.close()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("schedule", ["ntp", "zipar:3", "jacobi:7", "zipar:adaptive=1,first-row=windowed"])
def test_tokens_are_pythons(
    ours: cpp_abi.Runner, noise_runner: Runner, schedule: str, settings: dict[str, Any]
) -> None:
    request: dict[str, Any] = {"classes": CLASSES, "seeds": SEEDS, "schedule": schedule, **settings}
    expected = noise_runner.generate(**request)
    for batch in (1, 2, 5):
        found = ours.generate(**request, batch=batch)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
