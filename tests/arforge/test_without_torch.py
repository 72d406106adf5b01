"""What a service installs (`arforge[cpu]`) is enough for all but exporting and building."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arforge.runner.errors import EngineError
from arforge.runner.optional import needed

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxscript', 'onnx_ir', 'matplotlib')))"


def arforge(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"{BLOCKED}; from arforge.cli import main; main({[str(a) for a in arguments]!r})"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=folder)


def test_run_inspect_and_verify_need_no_torch(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "t.npy"
    for arguments in (
        ("inspect", bundle),
        ("run", bundle, "--class", 1, "--tokens", tokens, "--output", tmp_path / "x.png"),
    ):
        done = arforge(*arguments)
        assert done.returncode == 0, done.stderr
    assert np.load(tokens).shape == (1, 64)
    done = arforge("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "torch module: not compared (no torch, onnx; pip install 'arforge[export]')" in done.stdout


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_says_what_to_install(bundle_copy: Path, precision: str) -> None:
    done = arforge("build", bundle_copy, "--target", "onnxruntime", "--precision", precision)
    assert done.returncode == 1
    assert done.stderr == "Error: building needs onnx-ir: pip install 'arforge[build]'\n"


def test_export_says_what_to_install(tmp_path: Path) -> None:
    done = arforge("export", "llamagen", "--variant", "B", "--checkpoint", "c.pt", "--output", tmp_path / "x.bundle")
    assert done.returncode == 1
    assert "pip install 'arforge[export]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", [("--checkpoint", "c.pt"), ("--schedule", "ntp")])
def test_verify_refuses_a_comparison_that_it_cannot_make(bundle: Path, option: tuple[str, str]) -> None:
    done = arforge("verify", bundle, *option)
    assert done.returncode == 1
    assert "comparing with torch needs torch, onnx" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("calibrate", "calibrating needs onnx: pip install 'arforge[build]'"),
        ("build --target tensorrt-rtx", "building needs onnx-ir: pip install 'arforge[tensorrt-rtx]'"),
        ("build --target tensorrt", "building needs onnx-ir: pip install 'arforge[tensorrt]'"),
        ("build --target tensorrt --dry-run", "building needs onnx-ir: pip install 'arforge[tensorrt]'"),
        ("profile --html p.html --schedule ntp", "plotting needs matplotlib: pip install 'arforge[evaluate]'"),
        ("evaluate --reference r", "evaluating needs torch: pip install 'arforge[evaluate]' (an unpinned torch is the"),
    ],
)
def test_every_command_names_what_it_lacks(bundle: Path, tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "r").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"r/{name}.png")
    command, *options = words.split()
    done = arforge(command, bundle, *options, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_package_of_a_package_is_named() -> None:
    wanted = r"^building needs sympy: pip install 'arforge\[build\]'$"
    with pytest.raises(EngineError, match=wanted), needed("building", "build", EngineError):
        raise ModuleNotFoundError("No module named 'sympy.core'", name="sympy.core")


def test_a_package_that_is_broken_says_how() -> None:
    wanted = r"^building needs onnx-ir, which cannot be loaded \(libx.so is missing\): pip install 'arforge\[build\]'$"
    with pytest.raises(EngineError, match=wanted), needed("building", "build", EngineError):
        raise ImportError("libx.so is missing", name="onnx_ir._core")


def test_a_fault_of_arforge_is_not_blamed_on_a_package() -> None:
    with pytest.raises(ModuleNotFoundError), needed("building", "build"):
        raise ModuleNotFoundError("No module named 'arforge.gone'", name="arforge.gone")


def test_running_a_bundle_without_engine_says_what_building_needs(exported_bundle: Path, tmp_path: Path) -> None:
    done = arforge("run", exported_bundle, "--class", 1, "--tokens", tmp_path / "t.npy")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {exported_bundle} has no onnxruntime fp32 engine, and building it needs onnx-ir: "
        "pip install 'arforge[build]'\n"
    )
