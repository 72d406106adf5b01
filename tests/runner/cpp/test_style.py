"""Formatting, lints, and the size of files."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "runner/cpp"
FILES = sorted(
    path
    for folder in (SOURCE, Path(__file__).parent / "programs")
    for path in folder.rglob("*")
    if path.suffix in {".cpp", ".h", ".hpp", ".c"}
)
TOOLS = Path(sys.executable).parent


def test_files_are_as_clang_format_writes_them() -> None:
    assert len(FILES) > 40
    command = [TOOLS / "clang-format", "--dry-run", "--Werror", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def test_files_are_small() -> None:
    lines = {path.name: path.read_text("utf-8").count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > 300} == {}
    assert lines["service.cpp"] < 190


@pytest.mark.parametrize("folder", ["src", "tools", "examples", "fuzz", "triton"])
def test_clang_tidy_finds_nothing(onnxruntime_root: Path, tmp_path: Path, folder: str) -> None:
    """A folder's files as one: the libraries' headers are read once."""
    json = find_spec("nlohmann_json")
    assert json is not None
    assert json.submodule_search_locations
    together = tmp_path / "together.cpp"
    together.write_text("".join(f'#include "{path}"\n' for path in sorted((SOURCE / folder).rglob("*.cpp"))))
    assert together.stat().st_size
    done = subprocess.run(
        [
            TOOLS / "clang-tidy",
            f"--config-file={SOURCE / '.clang-tidy'}",
            "--checks=-bugprone-suspicious-include",
            "--quiet",
            together,
            "--",
            "-std=c++17",
            '-DARFORGE_VERSION="0"',
            "-Wno-deprecated-declarations",
            f"-I{SOURCE / 'include'}",
            f"-I{SOURCE / 'src'}",
            "-DARFORGE_TENSORRT",
            f"-isystem{Path(__file__).parent / 'programs'}",
            f"-isystem{Path(__file__).parent / 'programs/tensorrt_stand_in/include'}",
            f"-isystem{Path(__file__).parent / 'programs/tensorrt_stand_in/include/rtx'}",
            f"-isystem{onnxruntime_root / 'include'}",
            f"-isystem{Path(json.submodule_search_locations[0]) / 'include'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
