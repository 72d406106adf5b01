"""What each version of TensorRT is given: the table, and the commands and graphs of a dry run for one elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from arforge.engines import tensorrt
from arforge.engines.tensorrt import BuildJob
from arforge.engines.tensorrt_library import load_builder
from arforge.engines.tensorrt_versions import TENSORRT, abilities, choose_caches
from arforge.engines.trtexec import dry_run
from arforge.runner import EngineError, open_bundle
from arforge.runner.backends.tensorrt_identity import build_command, lowered_of, reads_only
from arforge.runner.backends.tensorrt_library import MINIMUM, Library

RTX = "tensorrt-rtx"


@pytest.mark.parametrize(
    ("version", "in_place", "typed", "opset"),
    [
        ("10.3", False, True, 20),
        ("10.3.0", False, True, 20),
        ("10.14.1.48.post1", False, True, 20),
        ("10.15", True, True, 24),
        ("10.16.1.11", True, True, 24),
        ("11.0.0.114", True, False, 24),
        (None, True, False, 24),
    ],
)
def test_versions_fall_into_three_ranges(version: str | None, in_place: bool, typed: bool, opset: int) -> None:
    found = abilities("tensorrt", version)
    assert (found.in_place, found.fused, found.typed_on_request, found.opset) == (in_place, in_place, typed, opset)
    chosen = choose_caches("tensorrt", version, "auto", "auto")
    assert chosen.read_only != in_place
    assert in_place or chosen.reason == f"tensorrt {version} has no KVCacheUpdate"
    assert abilities(RTX, "1.7.1.116").in_place
    assert TENSORRT[0].since == MINIMUM["tensorrt"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("10.2.0", r"tensorrt 10\.2\.0 is too old: 10\.3 and later are built for"),
        ("8.6", "is too old"),
        ("10", r"'10' is no version of tensorrt: give two numbers, such as 10\.3"),
        ("ten.3", "'ten.3' is no version"),
    ],
)
def test_other_versions_are_refused(version: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        abilities("tensorrt", version)


@pytest.mark.parametrize(
    ("version", "asked", "attention", "message"),
    [
        ("10.3", "in-place", "auto", r"tensorrt 10\.3 updates no cache in place, 10\.15 and later do"),
        ("10.3", "auto", "fused", "--attention fused needs caches that are updated in place"),
        ("11.0", "read-only", "fused", "--attention fused needs caches that are updated in place"),
        ("10.3", "else", "auto", "no lowering of caches is called 'else': use auto, in-place, read-only"),
    ],
)
def test_wishes_that_a_version_lacks_are_refused(version: str, asked: str, attention: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_caches("tensorrt", version, asked, attention)


def test_wishes_are_reasons() -> None:
    assert choose_caches("tensorrt", "10.15", "read-only", "auto").reason == "as asked"
    assert choose_caches("tensorrt", "11.0", "in-place", "fused").reason == "as asked"
    assert choose_caches("tensorrt", "11.0", "auto", "fused").reason == "the library updates caches in place"


@pytest.mark.parametrize(("version", "older"), [("10.3", True), ("10.16", False), ("11.1", False)])
def test_a_dry_run_for_a_device_elsewhere(exported_bundle: Path, tmp_path: Path, version: str, older: bool) -> None:
    """Its graphs and commands are what that version of trtexec reads and takes."""
    folder = tmp_path / "graphs"
    commands = dry_run(BuildJob(exported_bundle, "tensorrt", "fp16", schedules=["ntp"], version=version), folder)
    assert len(commands) == (2 if older else 3)  # the loop graph goes with caches that are updated in place
    words = [shlex.split(line) for line in commands]
    for each in words:
        assert each[0] == "trtexec"
        assert ("--stronglyTyped" in each) == (version != "11.1")
    assert [("--noTF32" in each) for each in words] == ([True, False] if older else [False] * 3)
    for each in words:
        (path,) = (word.removeprefix("--onnx=") for word in each if word.startswith("--onnx="))
        onnx.checker.check_model(folder / path, full_check=True)
        model = onnx.load(folder / path, load_external_data=False)
        (opset,) = (one.version for one in model.opset_import)
        assert opset <= abilities("tensorrt", version).opset
        outputs = {value.name for value in model.graph.output}
        if "next_tokens" in outputs and "key_cache_0" in {value.name for value in model.graph.input}:
            assert ("key_update_0" in outputs, "new_key_cache_0" in outputs) == (older, not older)


def test_builders_are_asked_for_strong_types_where_there_are_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_builder(RTX)  # which settles what Polygraphy stands on in this process
    from polygraphy.backend import trt

    asked: list[Any] = []
    monkeypatch.setattr(trt, "network_from_onnx_path", lambda path, strongly_typed: asked.append(strongly_typed))
    monkeypatch.setattr(tensorrt, "make_config", lambda *arguments: asked.append(arguments[-1]))

    def build(*_: Any, save_timing_cache: str) -> bytes:
        Path(save_timing_cache).write_bytes(b"times")
        return b"engine"

    monkeypatch.setattr(trt, "engine_bytes_from_network", build)
    recorder = SimpleNamespace(clear=lambda: None, layers="", errors=[], memory={})
    for version in ("10.3.0", "10.16.1", "11.4"):
        library = Library("tensorrt", SimpleNamespace(), version, recorder)
        job = BuildJob(tmp_path, "tensorrt", "fp16")
        for exact in (False, True):
            result = tensorrt.run_builder(library, tmp_path / "graph.onnx", [], job, ["8.7"], None, exact=exact)
            assert result.engine == b"engine"
    assert asked == [True, True, False, True] * 2 + [True, False, False, False]


def test_identities_of_before_have_caches_in_place(exported_bundle: Path) -> None:
    assert not reads_only({})
    assert reads_only({"caches": {"lowering": "read-only", "reason": "as asked"}})
    opened = open_bundle(exported_bundle)
    identity: dict[str, Any] = {"types": "half", "filters": False}
    assert {t.name for t in lowered_of(opened, identity).outputs} >= {"new_key_cache_0"}
    updated = lowered_of(opened, identity | {"caches": {"lowering": "read-only", "reason": "as asked"}})
    assert updated["key_update_0"].shape == ("rows", 4, "width", 16)
    assert not any(tensor.name.startswith("new_") for tensor in updated.outputs)


@pytest.mark.parametrize("caches", ["auto", "read-only"])
def test_the_command_of_an_identity_names_a_lowering_that_was_asked_for(caches: str) -> None:
    names = ("compute-capability", "schedule", "width", "prefill-width", "images")
    options: dict[str, Any] = {name: [] for name in names}
    identity = {
        "target": "tensorrt",
        "precision": "fp16",
        "filters": False,
        "strip_weights": False,
        "options": {**options, "attention": "auto", "caches": caches},
    }
    assert ("--caches read-only" in build_command(Path("b"), identity)) == (caches == "read-only")
