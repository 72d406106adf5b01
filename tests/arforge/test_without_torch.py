"""What a service installs (`arforge[cpu]`) is enough for all but exporting and building."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxscript', 'onnx_ir')))"


def arforge(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = f"{BLOCKED}; from arforge.cli import main; main({[str(a) for a in arguments]!r})"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


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
