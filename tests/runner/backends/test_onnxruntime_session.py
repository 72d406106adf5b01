"""How ONNX Runtime is brought in: without telemetry, with as many threads as the process may use."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arforge.runner.backends import onnxruntime_session
from arforge.runner.backends.onnxruntime_session import default_threads, load_library
from arforge.runner.errors import EngineError

ROOT = Path(__file__).parents[3]
LOAD = """
import os
from arforge.runner.backends.onnxruntime_session import load_library
load_library().SessionOptions()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def load_in(home: Path, **environment: str) -> str:
    """Import the library with `home` as the home folder; what it then finds in the environment."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    kept |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LOAD]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True).stdout


def test_the_library_does_not_report_home(tmp_path: Path) -> None:
    assert load_in(tmp_path) == "1\n"
    assert list(tmp_path.rglob("*")) == []


def test_who_wants_telemetry_keeps_it(tmp_path: Path) -> None:
    assert load_in(tmp_path, ORT_DISABLE_TELEMETRY="0") == "0\n"


def imports(tree: ast.AST) -> set[str]:
    """Packages that a file imports when it runs, thus not those for the type checker."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return set()
    if isinstance(tree, ast.Import):
        return {alias.name.partition(".")[0] for alias in tree.names}
    if isinstance(tree, ast.ImportFrom) and tree.level == 0:
        return {str(tree.module).partition(".")[0]}
    return set().union(*(imports(child) for child in ast.iter_child_nodes(tree)))


def test_the_library_is_imported_in_one_place() -> None:
    """And ONNX Runtime's quantiser, a part of it, right after that."""
    folders = ("arforge", "runner", "engines", "export", "calibration", "examples", "bench", "serving")
    files = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in files}
    found = {name for name, tree in trees.items() if "onnxruntime" in imports(tree)}
    assert found == {"runner/backends/onnxruntime_session.py", "calibration/quantize.py"}
    text = (ROOT / "calibration/quantize.py").read_text("utf-8")
    after = text.split("    load_library()\n", 1)[1]
    assert text.count("from onnxruntime") == after.count("from onnxruntime.quantization")


def test_a_session_follows_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "machine_cores", lambda: 8)
    for available, threads in ((8, 0), (3, 3), (1, 1)):
        monkeypatch.setattr(onnxruntime_session, "available_cores", lambda: available)  # noqa: B023
        assert default_threads() == threads


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime.capi", None)
    with pytest.raises(EngineError, match=r"onnxruntime is not whole, onnxruntime.capi is missing: pip install 'arf"):
        load_library()
