"""Memory: what the step loop allocates, what many generations keep, what sanitizers, valgrind and fuzzing find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import RTX
from tensorrt_pairs import StandIns

from arforge.runner import compile_schedule, open_bundle
from arforge.runner.schedules.file import dump

SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
FUZZ_SECONDS = 4


def output(command: list[Any], **environment: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "schedule", "steps", "passes"),
    [
        ("bundle", "zipar:2", 28, 0),
        ("arpg_bundle", "arpg:8", 8, 0),
        ("text_bundle", "zipar:2", 28, 6),
        ("ids_bundle", "zipar:4", 29, 6),
    ],
)
def test_the_step_loop_allocates_nothing(
    release: Any, request: pytest.FixtureRequest, name: str, schedule: str, steps: int, passes: int
) -> None:
    """Not even in the first generation: caches and buffers are made before its first step.

    `passes`: of prompts, of which later generations find the unconditional half, also behind one that was cancelled.
    """
    root = request.getfixturevalue(name)
    said = output([release.program("allocations"), root, schedule])
    more = (passes, passes // 2, passes // 2)
    assert said.splitlines() == [f"{steps} steps, {steps + one} runs, 0 allocations" for one in more]
    provoked = output([release.program("allocations"), root, schedule, "provoke"])
    assert f"{steps - 1} allocations" in provoked  # the counter-check


@pytest.mark.parametrize(("name", "passes"), [("bundle", 0), ("text_bundle", 6), ("ids_bundle", 6)])
def test_running_ahead_allocates_nothing_either(
    release: Any, request: pytest.FixtureRequest, name: str, passes: int
) -> None:
    """`passes`: as above; the calls are as many as the slowest image takes."""
    said = output([release.program("allocations"), request.getfixturevalue(name), "jacobi:8"])
    found = [tuple(map(int, re.findall(r"\d+", line))) for line in said.splitlines()]
    steps = found[0][0]
    assert 8 < steps < 64
    assert found == [(steps, steps + one, 0) for one in (passes, passes // 2, passes // 2)]


@pytest.mark.parametrize(("name", "passes"), [("bundle", 0), ("text_bundle", 6), ("ids_bundle", 6)])
def test_rows_that_start_by_themselves_allocate_in_the_first_generation_alone(
    release: Any, request: pytest.FixtureRequest, name: str, passes: int
) -> None:
    """That one binds the memory of a width to the slots that it turns out to need; so does one after new prompts."""
    said = output([release.program("allocations"), request.getfixturevalue(name), "zipar:adaptive=2"])
    found = [tuple(map(int, re.findall(r"\d+", line))) for line in said.splitlines()]
    steps = found[0][0]
    assert 22 < steps < 64
    assert [one[:2] for one in found] == [(steps, steps + one) for one in (passes, passes // 2, passes // 2)]
    if not passes:
        assert [one[2] for one in found[1:]] == [0, 0]


@pytest.mark.parametrize(("name", "count"), [("grouped_bundle", 1000), ("text_bundle", 300), ("ids_bundle", 300)])
def test_many_generations_do_not_grow(release: Any, request: pytest.FixtureRequest, name: str, count: int) -> None:
    said = output([release.program("generations"), "growth", request.getfixturevalue(name), count])
    early, late = map(int, said.split())
    assert early > 0
    assert late - early < 1 << 20


def test_two_runners_in_two_threads_and_two_threads_on_one(release: Any, bundle: Path) -> None:
    assert output([release.program("generations"), "threads", bundle]) == "36 generations, 0 wrong\n"


@pytest.mark.parametrize("name", ["grouped_bundle", "arpg_bundle", "par_bundle", "text_bundle", "ids_bundle"])
def test_generations_are_clean_under_sanitizers(sanitized: Any, request: pytest.FixtureRequest, name: str) -> None:
    root = request.getfixturevalue(name)
    assert "36 generations, 0 wrong" in output([sanitized.program("generations"), "threads", root], **SANITIZERS)


@pytest.mark.parametrize("name", ["bundle", "arpg_bundle", "text_bundle", "ids_bundle"])
def test_a_batcher_is_clean_under_sanitizers(sanitized: Any, request: pytest.FixtureRequest, name: str) -> None:
    """72 requests of 6 threads, whose numbers are gone once they are submitted."""
    said = output([sanitized.program("strangers"), request.getfixturevalue(name)], **SANITIZERS)
    right, cancelled, late, thrown, wrong = map(int, re.findall(r"\d+", said))
    assert (right + cancelled + late + thrown, thrown, wrong) == (72, 6, 0)
    assert right >= 30


def test_a_generation_is_clean_under_valgrind(release: Any, arpg_bundle: Path) -> None:
    """Errors in arforge's own code count: those whose innermost frame, but for the C library's, is in it."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    said = output(["valgrind", release.program("generations"), "growth", arpg_bundle, "2"])
    assert "ERROR SUMMARY" in said
    problems = re.split(r"^==\d+== *$", said, flags=re.MULTILINE)
    system = re.compile(r"vgpreload|libc\.so|libstdc\+\+|libm\.so|libgcc")
    ours = []
    for problem in problems:
        frames = [line for line in problem.splitlines() if re.search(r" (at|by) 0x", line)]
        innermost = next((frame for frame in frames if not system.search(frame)), "")
        if "libarforge" in innermost or "generations" in innermost:
            ours.append(problem)
    assert not ours, "\n".join(ours)


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, arpg_bundle: Path, par_bundle: Path, text_bundle: Path,
    ids_bundle: Path, stand_ins: StandIns,
) -> Path:  # fmt: skip
    """Manifests, schedule files, specifications and arrays, as fuzzing starts from them."""
    folder = tmp_path_factory.mktemp("corpus")
    for index, kind in enumerate(("<f4", "<f2", "<f8", "|b1", "<i8", "<i4")):
        np.save(folder / f"{index}.npy", np.ones((2, 3, 4), kind))
    for index, root in enumerate((bundle, arpg_bundle, par_bundle, text_bundle, ids_bundle)):
        shutil.copy(root / "manifest.json", folder / f"manifest-{index}")
        for path in (root / "schedules").iterdir():
            shutil.copy(path, folder / f"{index}-{path.name}")
    with_tensorrt = open_bundle(stand_ins("jacobi"))
    identity = next(engine.path for engine in with_tensorrt.engines if engine.target == RTX)
    shutil.copy(with_tensorrt.path(identity), folder / "identity")
    for row_end in (None, 0):
        for kind in ("ntp", "zipar:3"):
            line = compile_schedule(f"{kind},jacobi=5", (3, 5), row_end=row_end)
            (folder / f"{kind}-{row_end}").write_bytes(dump(line))
    (folder / "kept").write_bytes(dump(compile_schedule("arpg:4", (3, 5), (2, 9, 14))))
    for text in (
        "ntp,cfg-interval=3",
        "zipar:3,seed=nearest,holes=masked",
        "par:4",
        "arpg:7,ratio=cosine,order=5",
        "zipar:13",
        "jacobi:5,cfg-interval=9",
        "zipar:3,jacobi=7",
    ):
        (folder / text.replace(":", "-")).write_text(text)
    return folder


def test_fuzzing_the_readers_finds_nothing(sanitized: Any, corpus: Path, tmp_path: Path) -> None:
    program = sanitized.program("fuzz-readers")
    # by a shell, since the memory that libFuzzer counts begins with that of the process which starts it
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*shell, program, corpus, f"-max_total_time={FUZZ_SECONDS}", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    said = output(command, **SANITIZERS)
    runs = re.search(r"Done (\d+) runs in", said)
    assert runs is not None, said
    assert int(runs[1]) > 200  # each follows all calls of a plan
    assert not list(tmp_path.iterdir())
