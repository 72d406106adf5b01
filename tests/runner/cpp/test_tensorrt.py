"""TensorRT's engines in C++, on a library and a GPU that are not there: the tokens are Python's, and the CPU engine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from tensorrt_pairs import KINDS, StandIn, StandIns, open_python
from tiny_ids import prompt_of

from arforge.runner import Runner, open_bundle
from arforge.runner.conditions import sample_features

SEEDS = [9, 2**64 - 1, 6, 5, 0]
CLASSES = [3, 1, 4, 1, 5]
FILTERED: list[dict[str, Any]] = [
    {"guidance": 2.0},
    {"guidance": 1.0, "top_k": 9},
    {
        "guidance": [1.0, 2.0, 1.5, 3.0, 1.0],
        "temperature": [1.0, 0.7, 1.0, 1.3, 0.0],
        "top_p": [1.0, 1.0, 0.8, 0.9, 1.0],
    },
]
PLAIN: list[dict[str, Any]] = [{"guidance": 2.0, "top_k": 0, "top_p": 1.0}, {"guidance": 1.0, "top_k": 0, "top_p": 1.0}]
CASES = [
    ("classes", "ntp", FILTERED),
    ("classes", "zipar:2", FILTERED),
    ("classes", "jacobi:2", FILTERED),
    ("jacobi", "ntp", FILTERED),
    ("jacobi", "jacobi:6", FILTERED),
    ("features", "ntp", FILTERED),
    ("features", "zipar:2", FILTERED),
    ("chunks", "zipar:2", PLAIN),
    ("ids", "ntp", FILTERED),
    ("ids", "zipar:2", FILTERED),
    ("par", "par:4", PLAIN),
    ("arpg", "arpg:3", PLAIN),
    ("noise", "jacobi:6", PLAIN),
]


def asked_of(path: Path) -> dict[str, Any]:
    """Five images: of classes, or of prompts of unequal lengths, one of them the longest there is."""
    model = open_bundle(path).model
    if model.condition.kind == "class":
        return {"classes": CLASSES, "seeds": SEEDS}
    if model.condition.kind == "ids":
        return {"ids": [prompt_of(length) for length in (3, 9, 1, 14, 3)], "seeds": SEEDS}
    one, two, three = sample_features(model, 3, seed=3)
    return {"features": [one[:1], np.tile(three, (120, 1))[:120], two, two, one], "seeds": SEEDS}


@pytest.mark.parametrize(
    ("kind", "schedule", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_tokens_calls_and_images_are_pythons_and_the_cpu_engines(
    stand_in: StandIn,
    stand_ins: StandIns,
    request: pytest.FixtureRequest,
    kind: str,
    schedule: str,
    settings: list[dict[str, Any]],
) -> None:
    path = stand_ins(kind)
    cpu: Runner = request.getfixturevalue(KINDS[kind][0].replace("bundle", "runner"))
    asked = {**asked_of(path), "schedule": schedule}
    ours = stand_in.open(path)
    with open_python(path) as theirs:
        for own in settings:
            expected = cpu.generate(**asked, **own)
            python = theirs.generate(**asked, **own)
            np.testing.assert_array_equal(python.tokens, expected.tokens)
            for batch in (1, 2, 32):  # of which 2 is filled up to 3, and so is what 32 leaves
                found = ours.generate(**asked, **own, batch=batch)
                np.testing.assert_array_equal(found.tokens, expected.tokens)
                np.testing.assert_array_equal(found.passes, expected.passes)
                if python.images is None:
                    assert found.images is None
                else:
                    np.testing.assert_array_equal(found.images, python.images)
            assert len(np.unique(expected.tokens)) > 5
    ours.close()
