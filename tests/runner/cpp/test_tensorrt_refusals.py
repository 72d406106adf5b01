"""TensorRT engines that do not fit, in C++: the words are Python's, with the command that builds the right one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from fake_gpu import RTX, FakeGpu
from stand_in_bundle import change_identity, rewrite
from tensorrt_pairs import StandIn, StandIns, open_python
from tiny_ids import prompt_of

from arforge.runner import EngineError, Runner, open_bundle

BUILT_SO = (
    r"`arforge build '.*a copy.bundle' --target tensorrt-rtx --precision fp32 --schedule ntp --schedule zipar:2 "
    r"--images 1 --images 3 --filters`"
)


@pytest.fixture
def copy(stand_ins: StandIns, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stand_ins("classes"), tmp_path / "a copy.bundle"))


def identity_path(root: Path) -> str:
    return next(engine.path for engine in open_bundle(root).engines if engine.target == RTX)


def check(pattern: str, message: str) -> None:
    assert re.search(pattern, message), message


def refused_alike(stand_in: StandIn, path: Path, gpu: FakeGpu | None = None) -> str:
    """What both say of an engine that is not opened."""
    with pytest.raises(EngineError) as expected:
        open_python(path, "fp32", gpu).close()
    assert stand_in.refused(path) == str(expected.value)
    return str(expected.value)


def test_one_that_is_not_built(stand_in: StandIn, copy: Path) -> None:
    with pytest.raises(EngineError, match=r"has no tensorrt-rtx fp16 engine .*Build it: arforge build ") as expected:
        open_bundle(copy).identities(RTX, "fp16")
    assert stand_in.refused(copy, "fp16") == str(expected.value)
    assert stand_in.refused(copy, "") == str(expected.value)  # which is the target's usual one


def test_one_for_another_gpu(stand_in: StandIn, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    gpu.compute_capability = "7.5"
    monkeypatch.setenv("STAND_IN_CAPABILITY", "7.5")
    found = refused_alike(stand_in, copy, gpu)
    check(f"was built for compute capability 8.6 and later, here is a GPU of .* 7.5: rebuild it with {BUILT_SO}", found)
    change_identity(copy, identity_path(copy), lambda identity: identity.update(compute_capabilities=["8.9", "12.0"]))
    check(r"was built for compute capability 8\.9, 12\.0, here", refused_alike(stand_in, copy, gpu))


def test_one_of_another_version(stand_in: StandIn, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library is loaded once, so others are copies."""
    cases = {
        "1.9.2.3": rf"was built by tensorrt-rtx 1\.7\S+, here is tensorrt-rtx 1.9.2.3: rebuild it with {BUILT_SO}",
        "1.2.0.0": r"tensorrt-rtx 1.2.0.0 is too old, 1.7 is needed",
        "2.0.1.0": r"this arforge was compiled for tensorrt-rtx 1.7, here is 2.0.1.0: build it with -DTENSORRT_ROOT",
    }
    for version, pattern in cases.items():
        library = shutil.copy(stand_in.options["plugin"], tmp_path / version)
        monkeypatch.setenv("STAND_IN_VERSION", version)
        check(pattern, stand_in.refused(copy, plugin=str(library)))
    with pytest.raises(EngineError) as expected:
        open_python(copy, version="1.9.2.3")
    assert stand_in.refused(copy, plugin=str(tmp_path / "1.9.2.3")) == str(expected.value)


@pytest.mark.parametrize(("part", "what"), [("graph", "another graph"), ("weights", "other weights")])
def test_one_of_another_graph(stand_in: StandIn, copy: Path, part: str, what: str) -> None:
    change_identity(copy, identity_path(copy), lambda found: found.update({f"{part}_sha256": "0" * 64}))
    check(
        f"was built from {what} than the bundle's graphs/.*: rebuild it with {BUILT_SO}", refused_alike(stand_in, copy)
    )


def test_one_that_copies_its_caches(stand_in: StandIn, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_COPIES", "1")
    check(f"engine of .*: it does not update key_cache_0 in place; rebuild it: {BUILT_SO}", stand_in.refused(copy))


def test_a_file_that_is_no_engine(stand_in: StandIn, copy: Path) -> None:
    engine = open_bundle(copy).engine(RTX, "fp32")["engine"]
    rewrite(copy, engine, b"not an engine")
    check(r"^tensorrt-rtx \S+ cannot load .*\.engine: the file is not an engine$", stand_in.refused(copy))
    rewrite(copy, engine, b"")
    check(r"cannot read .*\.engine: rebuild the engine", stand_in.refused(copy))


def test_an_engine_whose_tensors_are_not_what_its_identity_says(stand_in: StandIn, copy: Path) -> None:
    for change, pattern in (
        ({"filters": False}, r"it has 9 inputs beside its caches, expected 7; rebuild it: `arforge"),
        ({"slots": 70}, r"its mask is not bool \[1, 1, 1, 70\]; rebuild it"),
        (
            {"cache_order": "slots rows heads size"},
            r"its key_cache_0 is not float32 \[1, 1, \d+, \d+\]; rebuild it",
        ),
    ):
        other = Path(shutil.copytree(copy, copy.with_name("other.bundle"), dirs_exist_ok=True))
        change_identity(other, identity_path(other), lambda found, change=change: found.update(change))
        ours = stand_in.open(other)
        with pytest.raises(Failure, match=pattern) as refused:
            ours.generate([1], schedule="ntp", top_k=0, top_p=1.0)
        assert refused.value.status == STATUS["engine"]
        ours.close()


def test_a_library_that_fails_is_quoted_and_can_be_used_on(
    stand_in: StandIn, stand_ins: StandIns, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = stand_in.open(stand_ins("classes"))
    monkeypatch.setenv("STAND_IN_FAILURE", "out of registers")
    for _ in range(2):
        with pytest.raises(Failure, match=r"^tensorrt-rtx 1\..* failed in .*\.engine: out of registers$") as refused:
            ours.generate([1], schedule="zipar:2")
        assert refused.value.status == STATUS["engine"]
    monkeypatch.delenv("STAND_IN_FAILURE")
    expected = runner.generate([1], schedule="zipar:2").tokens
    np.testing.assert_array_equal(ours.generate([1], schedule="zipar:2").tokens, expected)
    ours.close()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STAND_IN_DEVICES", "0", "there is no CUDA GPU here: use --target onnxruntime"),
        ("STAND_IN_DEVICES", "-1", "there is no CUDA GPU here, or no driver for CUDA 13: use --target onnxruntime"),
        ("STAND_IN_MEMORY", "1", "no memory on the GPU for 0.00 GiB: use a smaller batch"),
    ],
)
def test_machines_that_lack_what_it_takes(
    stand_in: StandIn, copy: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert stand_in.refused(copy) == message


def test_targets_that_this_build_does_not_run(stand_in: StandIn, library: Any, copy: Path, tmp_path: Path) -> None:
    check("^unknown target 'cuda': this arforge runs onnx", stand_in.refused(copy, target="cuda"))
    plugin = str(tmp_path / "nowhere.so")
    check(r"^tensorrt-rtx cannot be loaded \(.*nowhere.so.*\): install", stand_in.refused(copy, plugin=plugin))
    with pytest.raises(Failure, match="this arforge was built without tensorrt-rtx: build it with -DARF"):
        cpp_abi.Runner(library, copy, target=RTX, precision="fp32")


def refused_in(ours: cpp_abi.Runner, theirs: Runner, **asked: Any) -> str:
    """What both say of a request that an engine was not built for."""
    with pytest.raises(EngineError) as expected:
        theirs.generate(**asked)
    with pytest.raises(Failure) as refused:
        ours.generate(**asked)
    assert (refused.value.status, refused.value.message) == (STATUS["engine"], str(expected.value))
    return refused.value.message


def test_wishes_that_an_engine_was_not_built_for(stand_in: StandIn, stand_ins: StandIns) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "classes",
            {"classes": [1], "schedule": "zipar:1"},
            r"decodes 6 tokens in a step, the engine was built for ",
        ),
        (
            "jacobi",
            {"classes": [1], "schedule": "zipar:4"},
            r"built for next-token decoding, .*: build it again",
        ),
        (
            "arpg",
            {"classes": [0], "schedule": "arpg:24"},
            r"16 cache slots, the schedule needs 24; rebuild it",
        ),
        (
            "arpg",
            {"classes": [0, 1], "schedule": "arpg:3", "top_k": 3},
            r"without top-k and top-p; rebuild it",
        ),
        (
            "ids",
            {"ids": [prompt_of(40)], "schedule": "ntp", "prefill": "bidirectional"},
            r"prompt of image 0 has \d+ tokens that see each other, the engine takes 16 at once: build",
        ),
    ]
    for kind, asked, pattern in cases:
        ours = stand_in.open(stand_ins(kind))
        with open_python(stand_ins(kind)) as theirs:
            check(pattern, refused_in(ours, theirs, **asked))
        ours.close()


def test_logits_that_are_no_numbers_are_noticed_and_forgotten(
    stand_in: StandIn, stand_ins: StandIns, tmp_path: Path
) -> None:
    original = stand_ins("par")
    path = Path(shutil.copytree(original, tmp_path / "spoilt.bundle"))
    engine = open_bundle(path).engine(RTX, "fp32")["engine"]
    text = (path / engine).read_text()
    rewrite(path, engine, text.replace(f"weights {original}", f"weights {path}").encode())
    for weights in path.rglob("*.weights"):
        size = weights.stat().st_size
        weights.write_bytes(np.full(size // 4, np.nan, np.float32).tobytes().ljust(size, b"\0"))
    ours = stand_in.open(path)
    for _ in range(2):
        with pytest.raises(Failure, match=r"step 0 of \d+, image 0: the logits are non-finite.*weights") as refused:
            ours.generate([1, 2], schedule="par:4", top_k=0, top_p=1.0)
        assert refused.value.status == STATUS["numerics"]
    ours.close()
