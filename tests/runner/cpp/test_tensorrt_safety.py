"""TensorRT engines in C++ under sanitizers, and identities that are wrong in every way: refused where Python does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpp_abi import STATUS
from stand_in_bundle import ENTERPRISE, change_identity, retargeted
from tensorrt_pairs import StandIns

from arforge.runner import EngineError, open_bundle

TARGET = "tensorrt"  # which the sanitized build is for
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "STAND_IN_VERSION": ENTERPRISE.split()[1],
}
WRONG: list[Any] = [None, -1, 2.0, 2**40, "", "x" * 501, True, [], ["8"], {}, [[]]]


def output(command: list[Any]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **SANITIZERS})
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("classes", "fp32"), ("chunks", "fp32"), ("ids", "fp32"), ("views", "fp16"), ("views-prompts", "fp16")],
)
def test_generations_are_clean_under_sanitizers(
    sanitized: Any, stand_ins: StandIns, tmp_path: Path, kind: str, precision: str
) -> None:
    """On TensorRT, whose headers differ from TensorRT-RTX's."""
    root = retargeted(stand_ins(kind, precision), tmp_path / "its.bundle", TARGET)
    said = output([sanitized.program("generations"), "threads", root, TARGET, precision])
    assert "36 generations, 0 wrong" in said


@pytest.mark.parametrize(("kind", "schedule"), [("arpg", "arpg:3"), ("par", "par:4"), ("jacobi", "jacobi:6")])
def test_other_schedules_are_clean_under_sanitizers(
    sanitized: Any, stand_ins: StandIns, tmp_path: Path, kind: str, schedule: str
) -> None:
    root = retargeted(stand_ins(kind), tmp_path / "its.bundle", TARGET)
    (tmp_path / "cases").write_text(f"{root}\t{schedule}\n")
    assert output([sanitized.program("generations"), "open", tmp_path / "cases", TARGET, "fp32"]) == "0\t\n"


def changes(identity: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Identities that differ from a sound one in one place."""
    yield "sound", identity
    for key, value in identity.items():
        yield f"without {key}", {name: other for name, other in identity.items() if name != key}
        for wrong in WRONG:
            yield f"{key}: {str(wrong)[:20]}", {**identity, key: wrong}
        if isinstance(value, dict):
            yield from ((f"{key}: {what}", {**identity, key: other}) for what, other in changes(value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for what, other in changes(value[0]):
                yield f"{key}: {what}", {**identity, key: [other, *value[1:]]}
    yield "more", {**identity, "more": 1}
    for capability in ("8", "8.", ".6", "8.6.1", "1000.0", "8.x", " 8.6"):
        yield f"capability {capability}", {**identity, "compute_capabilities": [capability]}


def test_identities_that_are_wrong_are_refused_where_python_does(
    sanitized: Any, stand_ins: StandIns, tmp_path: Path
) -> None:
    """Those that it reads are opened and run, or refused for what they say; nothing crashes."""
    root = retargeted(stand_ins("jacobi"), tmp_path / "sound.bundle", TARGET)
    (path,) = (engine.path for engine in open_bundle(root).engines if engine.target == TARGET)
    sound, lines, refused = json.loads((root / path).read_text()), [], []
    names = []
    for index, (name, identity) in enumerate(changes(sound)):
        copy = tmp_path / f"{index}.bundle"
        shutil.copytree(root, copy, copy_function=os.link)
        (copy / "manifest.json").unlink()
        shutil.copy(root / "manifest.json", copy)
        change_identity(copy, path, lambda found, identity=identity: (found.clear(), found.update(identity)))
        lines.append(f"{copy}\tntp\n")
        names.append(name)
        try:
            open_bundle(copy).identities(TARGET, "fp32")
        except EngineError:
            refused.append(True)
        else:
            refused.append(False)
    (tmp_path / "cases").write_text("".join(lines))
    said = output([sanitized.program("generations"), "open", tmp_path / "cases", TARGET, "fp32"])
    answers = [line.split("\t", 1) for line in said.removesuffix("\n").split("\n")]
    assert len(answers) == len(names) > 300
    reader = ("does not follow the format", "rebuild the engine", "is not listed among")
    for name, wrong, (code, message) in zip(names, refused, answers, strict=True):
        found = code == str(STATUS["engine"]) and any(words in message for words in reader)
        assert found == wrong, f"{name}: {code} {message}"
    assert answers[0] == ["0", ""]
    assert sum(refused) > 250
    assert sum(code == "0" for code, _ in answers) > 5
