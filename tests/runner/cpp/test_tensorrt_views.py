"""Engines that read their caches by views, in C++ on the stand-in: tokens are Python's, and the CPU engine's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from fake_gpu import RTX
from plain_lowering import open_plain
from stand_in_bundle import change_identity, retargeted
from tensorrt_pairs import StandIn, StandIns, open_python

from arforge.runner import EngineError, open_bundle
from arforge.runner.conditions import sample_features

SEEDS = [9, 2**64 - 1, 6, 5, 0]
FILTERED: list[dict[str, Any]] = [{"guidance": 2.0, "top_k": 9}, {"guidance": 1.0, "temperature": 1.2}]
PLAIN: list[dict[str, Any]] = [{"guidance": 2.0, "top_k": 0, "top_p": 1.0}, {"guidance": 1.0, "top_k": 0, "top_p": 1.0}]
CASES = [
    ("views", "ntp", FILTERED),
    ("views", "zipar:2", FILTERED),
    ("views-ahead", "jacobi:6", PLAIN),
    ("views-prompts", "ntp", FILTERED),
    ("views-prompts", "zipar:2", FILTERED),
    ("views-par", "par:4", PLAIN),
    ("views-arpg", "arpg:3", PLAIN),
]
PRECISION = "fp16"


def asked_of(path: Path) -> dict[str, Any]:
    """Five images: of classes, or of prompts of unequal lengths, one of them the longest there is."""
    model = open_bundle(path).model
    if model.condition.kind == "class":
        return {"classes": [3, 1, 4, 1, 5], "seeds": SEEDS}
    one, two, three = sample_features(model, 3, seed=3)
    return {"features": [one[:1], np.tile(three, (120, 1))[:120], two, two, one], "seeds": SEEDS}


@pytest.mark.parametrize(
    ("kind", "schedule", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_tokens_and_calls_are_pythons_and_the_cpu_engines(
    stand_in: StandIn, stand_ins: StandIns, kind: str, schedule: str, settings: list[dict[str, Any]]
) -> None:
    path = stand_ins(kind, PRECISION)
    assert open_bundle(path).engine(RTX, PRECISION)["cache_order"] == "slots rows heads size"
    asked = {**asked_of(path), "schedule": schedule}
    ours, plain = stand_in.open(path, PRECISION), open_plain(path)
    with open_python(path, PRECISION) as theirs:
        for own in settings:
            expected = plain.generate(**asked, **own)
            np.testing.assert_array_equal(theirs.generate(**asked, **own).tokens, expected.tokens)
            for batch in (1, 2, 32):  # of which 2 is filled up to 3, and so is what 32 leaves
                found = ours.generate(**asked, **own, batch=batch)
                np.testing.assert_array_equal(found.tokens, expected.tokens)
                np.testing.assert_array_equal(found.passes, expected.passes)
            assert len({tuple(row.flat) for row in expected.tokens}) >= 4
    ours.close()
    plain.close()


def test_caches_are_never_copied(stand_in: StandIn, stand_ins: StandIns) -> None:
    path = stand_ins("views", PRECISION)
    bundle, before = open_bundle(path), stand_in.counts().moved
    slots, model = bundle.engine(RTX, PRECISION)["slots"], bundle.model
    ours = stand_in.open(path, PRECISION)
    steps = ours.generate([1, 2, 3], schedule="zipar:2").steps
    ours.close()
    cache = 6 * model.kv_heads * slots * model.head_size * 2
    assert (stand_in.counts().moved - before) / steps < cache


@pytest.mark.parametrize(("kind", "runs"), [("views", [33, 33, 33]), ("views-prompts", [64, 61, 61])])
def test_the_step_loop_allocates_nothing(stand_in: StandIn, stand_ins: StandIns, kind: str, runs: list[int]) -> None:
    """What the stand-in itself allocates does not count.

    `runs`: of steps, table graphs before and behind them, passes of prompts and the image decoder.
    """
    program = str(stand_in.build.program("allocations"))
    command = [program, str(stand_ins(kind, PRECISION)), "zipar:2", "quiet", RTX, PRECISION]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [tuple(map(int, re.findall(r"\d+", line))) for line in (done.stdout + done.stderr).splitlines()]
    assert [one[1:] for one in found] == [(one, 0) for one in runs]


@pytest.mark.parametrize(
    ("kind", "precision", "told", "shape"),
    [
        ("views", PRECISION, "rows heads slots size", r"float16 \[2, 2, \d+, \d+\]"),
        ("classes", "fp32", "slots rows heads size", r"float32 \[1, 1, \d+, \d+\]"),
    ],
)
def test_an_identity_that_tells_the_other_order_is_refused_in_pythons_words(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path, kind: str, precision: str, told: str, shape: str
) -> None:
    original = stand_ins(kind, precision)
    path = Path(shutil.copytree(original, tmp_path / "a copy.bundle"))
    (entry,) = (engine.path for engine in open_bundle(path).engines if engine.target == RTX)
    change_identity(path, entry, lambda found: found.update(cache_order=told))
    with (
        open_python(path, precision, original=original) as theirs,
        pytest.raises(
            EngineError, match=rf"its key_cache_0 is not {shape}; rebuild it: `arforge build .*`$"
        ) as expected,
    ):
        theirs.generate([1], schedule="ntp")
    ours = stand_in.open(path, precision)
    for _ in range(2):
        with pytest.raises(Failure) as refused:
            ours.generate([1], schedule="ntp")
        assert refused.value.status == STATUS["engine"]
        assert refused.value.message == str(expected.value)
    ours.close()


def test_an_order_that_is_not_known_is_refused(stand_in: StandIn, stand_ins: StandIns, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stand_ins("views", PRECISION), tmp_path / "other.bundle"))
    (entry,) = (engine.path for engine in open_bundle(path).engines if engine.target == RTX)
    change_identity(path, entry, lambda found: found.update(cache_order="slots heads rows size"))
    assert "cache_order must be one of" in stand_in.refused(path, PRECISION)


def internals(sanitized: Any, mode: str, path: Path) -> str:
    """What a program says that has the engine itself, of TensorRT's library, to which the bundle was retargeted."""
    command = [str(sanitized.program("internals")), mode, str(path), "tensorrt", PRECISION]
    environment = {"STAND_IN_VERSION": "11.1.0.106", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.removesuffix("\n")


def test_rows_that_write_to_different_slots_are_refused_in_pythons_words(
    sanitized: Any, stand_ins: StandIns, tmp_path: Path
) -> None:
    path = retargeted(stand_ins("views-prompts", PRECISION), tmp_path / "its.bundle", "tensorrt")
    with open_python(stand_ins("views-prompts", PRECISION), PRECISION) as theirs:
        engine: Any = theirs._engine
        assert engine.one_mask  # so that images at paces of their own are decoded one by one
        engine.prepare(1, 2, 10, 0)
        engine.buffers(1).write_index[1] = 1
        with pytest.raises(EngineError) as expected:
            engine.run(1)
    wanted = str(expected.value)
    assert "rows of a step write to different slots, and tensorrt-rtx 1." in wanted
    name = re.search(r"tensorrt-rtx \S+(?= has)", wanted)
    assert name is not None
    assert internals(sanitized, "apart", path) == wanted.replace(name[0], "tensorrt 11.1.0.106")


@pytest.mark.parametrize("kind", ["views", "views-prompts"])
def test_slots_are_cleared_and_written_for_the_rows_that_run(
    sanitized: Any, stand_ins: StandIns, tmp_path: Path, kind: str
) -> None:
    path = retargeted(stand_ins(kind, PRECISION), tmp_path / "its.bundle", "tensorrt")
    assert internals(sanitized, "caches", path) == "6 and 2 rows as they should be"
