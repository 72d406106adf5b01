"""Bundles made to do harm: each is refused by an error of its own, before anything that it names is allocated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reliability.small_bundle import (
    NATIVE,
    RTX,
    SCHEDULE,
    STEP,
    WEIGHTS,
    edit_manifest,
    nodes,
    put,
    replaced,
    use,
)

from arforge.runner import ArforgeError, EngineError, ScheduleError
from arforge.runner.errors import FileSizeError, ManifestError, PathError
from arforge.runner.json_file import MAX_BYTES

pytestmark = pytest.mark.usefixtures("_little_memory")
FACTS = {"bytes": 0, "sha256": "0" * 64}
HUGE = 2**30


def add_file(path: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({path: FACTS})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "not a plain relative path"),
        ("../outside", "leaves the bundle"),
        ("graphs/../../outside", "leaves the bundle"),
        ("C:/x", "not a plain relative path"),
        ("graphs\\x", "not a plain relative path"),
        ("graphs/fp32/STEP.onnx", "differ in case"),
        ("Graphs/fp32/other.onnx", "differ in case"),
        ("graphs/fp32/\u212a.onnx\ngraphs/fp32/k.onnx", "not every system"),
        ("graphs/step.onnx ", "not every system"),
        ("graphs./x", "not every system"),
        ("graphs/a\x1bb", "not every system"),
        ("graphs/\u00fc", "not every system"),
    ],
)
def test_paths_that_escape_or_collide_are_refused(small: Path, path: str, message: str) -> None:
    edit_manifest(small, add_file(path))
    with pytest.raises(PathError, match=message):
        use(small)


@pytest.mark.parametrize(("one", "other"), [("\u212a", "k"), ("e\u0301", "\u00e9"), ("stra\u00dfe", "STRASSE")])
def test_names_that_some_file_systems_take_for_one_are_refused(small: Path, one: str, other: str) -> None:
    for path in (one, other):
        edit_manifest(small, add_file(path))
    with pytest.raises(PathError, match="differ in case or accents only"):
        use(small)


@pytest.mark.parametrize("place", [STEP, "graphs", "engines", SCHEDULE])
def test_a_link_is_refused_wherever_it_leads(small: Path, tmp_path: Path, place: str) -> None:
    (small / place).rename(tmp_path / "moved")
    (small / place).symlink_to(tmp_path / "moved")
    with pytest.raises(PathError, match="is a link; a bundle holds plain files only"):
        use(small)


def test_a_pipe_in_place_of_a_file_does_not_hang(small: Path) -> None:
    (small / WEIGHTS).unlink()
    os.mkfifo(small / WEIGHTS)
    with pytest.raises(ArforgeError, match="is not a file"):
        use(small)


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400])
def test_sizes_that_overflow_are_only_compared(small: Path, size: int) -> None:
    edit_manifest(small, lambda manifest: manifest["files"][WEIGHTS].update(bytes=size))
    with pytest.raises(FileSizeError, match="the manifest says"):
        use(small)


@pytest.mark.parametrize("key", ["layers", "caches"])
def test_counts_that_lists_are_made_of_are_bounded(small: Path, key: str) -> None:
    edit_manifest(small, lambda manifest: manifest["model"].update({key: HUGE}))
    with pytest.raises(ManifestError, match=r"layers|caches for"):
        use(small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"provenance": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 levels"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested more than 32 levels"),
        ("[" * 200_000, "not valid JSON"),
        ('{"guidance": 1e999}', "1e999 is out of range"),
        ('{"guidance": -Infinity}', "-Infinity is not allowed"),
        ('{"format": "x", "format": "arforge-bundle"}', "'format' is given twice"),
        ('{"version": ' + "9" * 5000 + "}", "not valid JSON"),
        ('\ufeff{"format": "arforge-bundle"}', "not valid JSON"),
    ],
    ids=["deep list", "deep table", "unclosed", "overflow", "infinity", "twice", "digits", "byte order mark"],
)
@pytest.mark.parametrize("path", ["manifest.json", NATIVE, RTX])
def test_json_that_two_parsers_could_take_differently_is_refused(
    small: Path, path: str, text: str, message: str
) -> None:
    if path == "manifest.json":
        (small / path).write_text(text, "utf-8")
    else:
        put(small, path, text.encode())
    with pytest.raises(ManifestError if path == "manifest.json" else EngineError, match=message):
        use(small)


@pytest.mark.parametrize("path", ["manifest.json", NATIVE])
def test_huge_json_is_not_read(small: Path, path: str) -> None:
    os.truncate(small / path, 2**40)
    if path != "manifest.json":
        edit_manifest(small, lambda manifest: manifest["files"][path].update(bytes=2**40))
    with pytest.raises(ArforgeError, match=f"more than {MAX_BYTES}"):
        use(small)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["guidance", "temperature", "top_p"])
def test_sampler_defaults_that_are_not_numbers_are_refused(small: Path, key: str, value: float) -> None:
    edit_manifest(small, lambda manifest: manifest["sampler"].update({key: value}))
    with pytest.raises(ManifestError, match="is not allowed"):
        use(small)


def changed_identity(root: Path, path: str, place: tuple[str | int, ...], value: Any) -> None:
    put(root, path, json.dumps(replaced(json.loads((root / path).read_text()), place, value)).encode())


@pytest.mark.parametrize("path", [NATIVE, RTX])
def test_every_part_of_an_identity_is_needed_and_of_its_kind(small: Path, path: str) -> None:
    """A field that is missing or of another type never reaches the code that uses it."""
    sound = json.loads((small / path).read_text())
    places = [place for place in nodes(sound) if place]
    assert len(places) > 8
    for place in places:
        value = {"unexpected": [None]}
        put(small, path, json.dumps(replaced(sound, place, value)).encode())
        with pytest.raises(EngineError, match="does not follow the format"):
            use(small)
    for key in sound:
        put(small, path, json.dumps({name: value for name, value in sound.items() if name != key}).encode())
        with pytest.raises(EngineError, match=rf"does not follow the format: .*{key}"):
            use(small)
    put(small, path, json.dumps(sound).encode())
    use(small)


@pytest.mark.parametrize(
    ("path", "place", "value", "message"),
    [
        (RTX, ("engine",), "/etc/passwd", "engine '/etc/passwd' is not listed among the bundle's files"),
        (RTX, ("engine",), "../other.bundle/engine", "is not listed"),
        (RTX, ("lowered",), STEP + "/../x", "is not listed"),
        (RTX, ("decoder",), "graphs", "is not listed"),
        (RTX, ("layers",), "x", "layers 'x' is not listed"),
        (RTX, ("timing_cache",), "x", "timing_cache 'x' is not listed"),
        (NATIVE, ("weights",), "../w", "weights '../w' is not listed"),
        (NATIVE, ("precision",), "int8", "is for precision int8, the manifest says fp32"),
        (NATIVE, ("device",), "gpu", "is for device gpu, the manifest says cpu"),
        (RTX, ("target",), "tensorrt", "is for target tensorrt, the manifest says tensorrt-rtx"),
        (RTX, ("graph",), WEIGHTS, "built from another graph"),
        (RTX, ("graph",), "/etc/passwd", "built from another graph"),
        (RTX, ("slots",), 2**62, "does not follow"),
        (RTX, ("slots",), 24.0, "slots must be a whole number"),
        (RTX, ("profiles",), [], "does not follow"),
        (RTX, ("profiles", 0, "images"), 0, "does not follow"),
        (RTX, ("profiles", 0, "width"), -1, "does not follow"),
        (RTX, ("profiles", 0, "condition"), -1, "does not follow"),
        (RTX, ("profiles", 0, "condition"), 2**31, "does not follow"),
        (RTX, ("profiles", 1, "condition"), 1.0, "must be a whole number"),
        (RTX, ("prefill_widths",), [0], "does not follow"),
        (RTX, ("prefill_widths",), [2.0], "prefill_widths/0 must be a whole number|whole number"),
        (RTX, ("prefill_widths",), [1] * 5000, "does not follow"),
        (RTX, ("options", "prefill-width"), ["8; rm"], "does not follow"),
        (RTX, ("compute_capabilities",), ["8.6; rm"], "does not follow"),
        (RTX, ("compute_capabilities",), ["9" * 99], "does not follow"),
        (NATIVE, ("widths",), [1] * 5000, "does not follow"),
        (NATIVE, ("widths",), [2.0], "whole number"),
        (NATIVE, ("widths",), [True], "does not follow"),
        (NATIVE, ("source",), STEP, "does not follow"),
    ],
)
def test_identities_that_lie_are_refused(
    small: Path, path: str, place: tuple[str | int, ...], value: Any, message: str
) -> None:
    changed_identity(small, path, place, value)
    with pytest.raises(EngineError, match=message):
        use(small)


def test_an_identity_may_say_more_about_onnx_runtime(small: Path) -> None:
    changed_identity(small, NATIVE, ("more",), {"block": 32.5})
    assert use(small).engine("onnxruntime", "fp32")["more"] == {"block": 32.5}


def test_a_schedule_of_a_size_that_no_schedule_has_is_not_read(small: Path) -> None:
    os.truncate(small / SCHEDULE, 2**40)
    edit_manifest(small, lambda manifest: manifest["files"][SCHEDULE].update(bytes=2**40))
    with pytest.raises(ScheduleError, match="bytes, more than 67108864"):
        use(small)
