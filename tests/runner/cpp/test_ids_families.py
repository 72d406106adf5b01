"""Lumina-mGPT, Emu3-Gen and Janus, exported from tiny folders: the C++ runner gives Python's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_llama import EMU3, JANUS_WORDS, LUMINA, janus_weights, llama_weights, save_folder, save_janus, save_tokenizer

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.runner import Runner

GRIDS = {"lumina": "4x6", "emu3": "3x5", "janus": "4x4"}
SEEDS = [9, 2**64 - 1, 6]


@pytest.fixture(scope="module", params=GRIDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    if name == "janus":
        save_janus(folder, janus_weights(seed=5))
        save_tokenizer(folder, dict(zip(JANUS_WORDS, range(270, 275), strict=True)))
    elif name == "emu3":
        save_folder(folder, llama_weights(EMU3, seed=3), EMU3)
    else:
        save_folder(folder, llama_weights(LUMINA, seed=1, norm_groups=2), LUMINA)
    output = folder.with_suffix(".bundle")
    done = CliRunner().invoke(main, ["export", str(folder), "--grid", GRIDS[name], "--output", str(output)])
    assert done.exit_code == 0, done.output
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
