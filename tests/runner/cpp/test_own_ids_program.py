"""arforge-run with models that read ids of a vocabulary of their own: Python's tokens, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ids import prompt_of

from arforge.runner import Runner


def run(program: Path, bundle: Path, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (program, bundle, *words, "--threads", 1, "--quiet")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(("build", "kind"), [("release", "<i8"), ("sanitized", "<i4")])
def test_arforge_run_gives_pythons_tokens(
    request: pytest.FixtureRequest, ids_bundle: Path, ids_runner: Runner, tmp_path: Path, build: str, kind: str
) -> None:
    """Of files of one prompt, and of several."""
    ids, several = [prompt_of(6, 0), prompt_of(30, 1)], np.stack([prompt_of(12, 0), prompt_of(12, 1)])
    for index, array in enumerate((*ids, several, prompt_of(9))):
        np.save(tmp_path / f"{index}.npy", array.astype(kind))
    asked = [word for index in range(3) for word in ("--prompt-ids", tmp_path / f"{index}.npy")]
    words = ("--samples", 6, "--seed", 7, "--schedule", "zipar:4", "--tokens", tmp_path / "t.npy")
    program = request.getfixturevalue(build).program("arforge-run")
    for options, settings in (
        ((), {}),
        (
            ("--unconditional", "image", "--prefill=bidirectional"),
            {"unconditional": "image", "prefill": "bidirectional"},
        ),
        (("--negative-ids", tmp_path / "3.npy"), {"negative_ids": prompt_of(9)}),
    ):
        done = run(program, ids_bundle, *asked, *options, *words, ASAN_OPTIONS="detect_leaks=1")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "6 images, zipar:4: 29 steps" in done.stdout
        given = [*ids, *several, *ids]
        expected = ids_runner.generate(ids=given, seeds=range(7, 13), schedule="zipar:4", images=False, **settings)
        np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected.tokens)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--unconditional", "none"), 2, "--unconditional: 'none' is not one of padded, image, negative"),
        (("--prefill", "both"), 2, "--prefill: 'both' is not one of causal, bidirectional"),
        (("--prompt-ids", "i.npy", "--prompt-ids-mask", "m.npy"), 2, "goes with --prompt-ids, one of them"),
        (("--negative-ids", "none.npy"), 102, "cannot read none.npy"),
        (
            ("--negative-ids", "i.npy", "--unconditional", "padded"),
            102,
            "a negative prompt is given, and unconditional",
        ),
        (
            ("--prompt-ids", "three.npy"),
            102,
            "three.npy holds int64 [1, 1, 1]: expected int64 or int32 [prompts, tokens]",
        ),
    ],
)
def test_arforge_run_says_what_is_wrong(
    release: Any, ids_bundle: Path, tmp_path: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    np.save(tmp_path / "i.npy", prompt_of(9))
    np.save(tmp_path / "three.npy", np.ones((1, 1, 1), int))
    command = [release.program("arforge-run"), ids_bundle, "--prompt-ids", "i.npy", "--tokens", "t.npy", *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "t.npy").exists()
