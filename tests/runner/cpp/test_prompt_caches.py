"""Prompts with keys and values in 8 bits in the C++ runner: the tokens of the Python runner."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from low_caches import always_quicker
from tiny_ids import prompt_of

from arforge.engines import onnxruntime
from arforge.runner import Runner, open_bundle
from arforge.runner.conditions import sample_subjects

SEEDS = [9, 2**64 - 1, 6, 0]
SETTINGS: list[dict[str, Any]] = [{}, {"greedy": True, "guidance": 2.0}, {"guidance": 1.0, "top_k": 7}, {"batch": 3}]


@pytest.mark.parametrize("quantization", ["blocks", "rows"])
@pytest.mark.parametrize("name", ["text_bundle", "ids_bundle"])
def test_tokens_are_pythons(
    library: Any, name: str, quantization: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Also where caches of float32 come between, and where an image is alone."""
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "low.bundle"))
    with pytest.MonkeyPatch.context() as patch:
        always_quicker(patch)
        subjects = sample_subjects(open_bundle(root).model, 6)
        onnxruntime.build(root, "int8", quantization=quantization, caches="int8", subjects=subjects)
    kind = open_bundle(root).model.condition.kind
    random = np.random.default_rng(7)
    given = [random.standard_normal((length, 48), np.float32) * 0.2 for length in (5, 60, 118, 2)]
    if kind == "ids":
        given = [prompt_of(length, seed) for seed, length in enumerate((9, 31, 140, 6))]
    ours = cpp_abi.Runner(library, root, precision="int8", threads=1)
    with Runner.open(root, precision="int8", threads=1) as theirs:
        for schedule in ("zipar:4", "jacobi:4", "ntp", "zipar:4"):
            for settings in SETTINGS:
                asked = {kind: given, "seeds": SEEDS, "schedule": schedule, **settings}
                expected = theirs.generate(**asked)
                assert theirs._engine.cache_type == (np.float32 if schedule == "jacobi:4" else np.int8)
                found = ours.generate(**asked)
                np.testing.assert_array_equal(found.tokens, expected.tokens)
                assert found.steps == expected.steps
            alone = ours.generate(**{kind: given[:1]}, seeds=SEEDS[:1], schedule=schedule)
            whole = ours.generate(**{kind: given}, seeds=SEEDS, schedule=schedule)
            np.testing.assert_array_equal(alone.tokens[0], whole.tokens[0])
    ours.close()
