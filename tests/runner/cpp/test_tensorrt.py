"""TensorRT's engines in C++, on a library and a GPU that are not there: tokens are Python's, and the CPU engine's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_abi import Failure
from cpp_service import ask, serving
from fake_gpu import RTX
from stand_in_bundle import change_identity, rewrite
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
    ("noise-table", "zipar:4", PLAIN),
    ("host", "par:4", PLAIN),
    ("only-read", "zipar:2", FILTERED),
    ("only-read-ahead", "jacobi:6", PLAIN),
    ("only-read-prompts", "zipar:2", PLAIN),
]


def asked_of(path: Path) -> dict[str, Any]:
    """Five images: of classes, or of prompts of unequal lengths, one of them the longest there is."""
    model = open_bundle(path).model
    if model.condition.kind == "class":
        return {"classes": CLASSES, "seeds": SEEDS}
    if model.condition.kind == "ids":
        return {"ids": [prompt_of(length) for length in (12, 20, 9, 16, 12)], "seeds": SEEDS}
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


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_tokens_of_fewer_bits_are_pythons(stand_in: StandIn, stand_ins: StandIns, precision: str) -> None:
    path = stand_ins("classes", precision)
    ours = stand_in.open(path, precision)
    with open_python(path, precision) as theirs:
        for schedule in ("ntp", "zipar:2"):
            for settings in FILTERED:
                asked = {**asked_of(path), "schedule": schedule, **settings}
                expected = theirs.generate(**asked)
                found = ours.generate(**asked)
                np.testing.assert_array_equal(found.tokens, expected.tokens)
                np.testing.assert_array_equal(found.images, expected.images)
    ours.close()


def test_onnx_runtime_decodes_where_there_is_no_engine_for_it_and_encodes(
    stand_in: StandIn, stand_ins: StandIns, arpg_runner: Runner, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(stand_ins("arpg"), tmp_path / "without.bundle"))
    (entry,) = (engine.path for engine in open_bundle(path).engines if engine.target == RTX)
    asked: dict[str, Any] = {"classes": [1, 2, 3], "schedule": "arpg:3", "top_k": 0, "top_p": 1.0}
    expected, waits = arpg_runner.generate(**asked), []
    assert expected.images is not None
    for _ in range(2):
        ours, before = stand_in.open(path), stand_in.counts().waits
        found = ours.generate(**asked)
        waits.append(stand_in.counts().waits - before)
        np.testing.assert_array_equal(found.images, expected.images)
        encoded = ours.encode(expected.images, found.tokens.size)
        np.testing.assert_array_equal(encoded.reshape(3, 4, 6), arpg_runner.encode(expected.images))
        ours.close()
        change_identity(path, entry, lambda identity: identity.update(decoder=None))
    assert waits[0] == waits[1] + 1  # for the image decoder


def test_previews_are_made_by_the_engine_of_the_decoder(stand_in: StandIn, stand_ins: StandIns, runner: Runner) -> None:
    ours, seen, expected = stand_in.open(stand_ins("classes"), look_every=1), [], []
    asked: dict[str, Any] = {"classes": CLASSES, "schedule": "zipar:2", "batch": 3}
    ours.generate(**asked, preview=lambda partial: seen.append((partial.facts.done, partial.pixels())))
    runner.generate(**asked, preview=lambda partial: expected.append((partial.done, partial.pixels())))
    assert [one[0] for one in seen] == [one[0] for one in expected]
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
    ours.close()


def test_each_shape_is_captured_once_and_a_call_is_one_launch_and_one_wait(
    stand_in: StandIn, stand_ins: StandIns
) -> None:
    ours, before = stand_in.open(stand_ins("host")), stand_in.counts()
    asked: dict[str, Any] = {"classes": [1], "schedule": "par:4", "guidance": 2.0, "top_k": 0, "top_p": 1.0}
    steps, widths = ours.generate(**asked).steps, 2  # one token each, and one a region
    first = stand_in.counts()
    assert first.captures - before.captures == widths
    assert first.launches - before.launches == steps - widths  # the first of each shape runs as it is
    assert first.waits - before.waits == steps
    assert first.copies - before.copies == 2 * widths
    ours.generate(**asked)
    second = stand_in.counts()
    assert second.launches - first.launches == second.waits - first.waits == steps
    assert (second.allocations, second.captures, second.copies) == (first.allocations, first.captures, first.copies)
    ours.close()


def test_caches_are_never_copied(stand_in: StandIn, stand_ins: StandIns) -> None:
    path = stand_ins("classes")
    bundle, before = open_bundle(path), stand_in.counts().moved
    slots, model = bundle.engine(RTX, "fp32")["slots"], bundle.model
    ours = stand_in.open(path)
    steps = ours.generate([1, 2, 3], schedule="zipar:2").steps
    ours.close()
    cache = 6 * model.kv_heads * slots * model.head_size * 4
    assert (stand_in.counts().moved - before) / steps < cache


def test_what_cannot_be_captured_runs_all_the_same(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_UNCAPTURABLE", "1")
    ours, before = stand_in.open(stand_ins("classes")), stand_in.counts().launches
    expected = runner.generate([7], schedule="zipar:2").tokens
    np.testing.assert_array_equal(ours.generate([7], schedule="zipar:2").tokens, expected)
    assert stand_in.counts().launches == before
    ours.close()


def test_compiled_kernels_are_kept(stand_in: StandIn, stand_ins: StandIns, tmp_path: Path) -> None:
    stand_in.open(stand_ins("par")).close()
    (kept,) = (tmp_path / "kernels").iterdir()
    engine = open_bundle(stand_ins("par")).engine(RTX, "fp32")["engine"]
    assert kept.name == f"{Path(engine).stem}-sm86.kernels"
    assert kept.read_bytes() == b"kernels"
    kept.write_bytes(b"kernels and more")
    stand_in.open(stand_ins("par")).close()
    assert kept.read_bytes() == b"kernels and more"
    kept.write_bytes(b"of another version")  # which the library refuses
    stand_in.open(stand_ins("par")).close()
    assert kept.read_bytes() == b"kernels"


def test_a_folder_that_cannot_be_written_is_no_hindrance(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path
) -> None:
    (tmp_path / "kernels").write_text("a file in the way")
    ours = stand_in.open(stand_ins("par"))
    assert ours.generate([1], schedule="par:4", top_k=0, top_p=1.0).tokens.size
    ours.close()
    assert (tmp_path / "kernels").read_text() == "a file in the way"


def test_an_engine_without_weights_is_given_those_of_its_graph(
    stand_in: StandIn, stand_ins: StandIns, par_runner: Runner, tmp_path: Path
) -> None:
    """By the library's ONNX parser, which lies beside it."""
    path = Path(shutil.copytree(stand_ins("par"), tmp_path / "stripped.bundle"))
    identity = open_bundle(path).engine(RTX, "fp32")
    text = (path / identity["engine"]).read_bytes()
    rewrite(path, identity["engine"], text.replace(b"\nprofile", b"\nstripped\nprofile", 1))
    asked: dict[str, Any] = {"classes": [1, 2], "schedule": "par:4", "top_k": 0, "top_p": 1.0}
    ours = stand_in.open(path)
    with pytest.raises(Failure, match="failed in .*: the engine has no weights"):
        ours.generate(**asked)
    ours.close()
    (entry,) = (engine.path for engine in open_bundle(path).engines if engine.target == RTX)
    change_identity(path, entry, lambda found: found.update(strip_weights=True))
    ours = stand_in.open(path)
    np.testing.assert_array_equal(ours.generate(**asked).tokens, par_runner.generate(**asked).tokens)
    ours.close()


@pytest.mark.parametrize(
    ("kind", "schedule", "runs"),
    [
        ("classes", "zipar:2", [58, 58, 58]),
        ("arpg", "arpg:3", [8, 8, 8]),
        ("features", "zipar:2", [64, 61, 61]),
        ("host", "par:4", [19, 19, 19]),
        ("jacobi", "jacobi:6", [113, 113, 113]),
    ],
)
def test_the_step_loop_allocates_nothing(
    stand_in: StandIn, stand_ins: StandIns, kind: str, schedule: str, runs: list[int]
) -> None:
    """What the stand-in itself allocates does not count.

    `runs`: of steps, graphs before and behind them, passes of prompts and the image decoder.
    """
    said = output([stand_in.build.program("allocations"), stand_ins(kind), schedule, "quiet", RTX, "fp32"])
    found = [tuple(map(int, re.findall(r"\d+", line))) for line in said.splitlines()]
    assert [one[1:] for one in found] == [(one, 0) for one in runs]


def output(command: list[Any], **environment: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def test_the_program_takes_a_target(stand_in: StandIn, stand_ins: StandIns, runner: Runner, tmp_path: Path) -> None:
    """It finds the library where it was when it was built."""
    tokens = tmp_path / "tokens.npy"
    command = [stand_in.build.program("arforge-run"), stand_ins("classes"), "--target", RTX, "--precision", "fp32"]
    output([*command, "--schedule", "zipar:2", "--class", "3,1", "--quiet", "--tokens", tokens])
    np.testing.assert_array_equal(np.load(tokens), runner.generate([3, 1], [0, 1], schedule="zipar:2").tokens)


def test_the_service_takes_a_target(stand_in: StandIn, stand_ins: StandIns, runner: Runner) -> None:
    with serving(stand_in.build, stand_ins("classes"), "--target", RTX, "--precision", "fp32") as port:
        head, body = ask(port, "GET /?class=3&seed=7&schedule=zipar:2&guidance=2")
    assert head == "HTTP/1.1 200 OK"
    images = runner.generate([3], [7], schedule="zipar:2", guidance=2.0).images
    assert images is not None
    assert body.endswith(images[0].tobytes())
