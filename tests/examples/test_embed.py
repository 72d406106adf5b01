"""The example of embedding, run as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE, *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_the_example_mixes_requests_and_cancels(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle, tmp_path / "images.png")
    assert done.returncode == 0, done.stderr
    assert "3 images in 64 steps" in done.stdout
    assert "the second alone is the same: True" in done.stdout
    assert "cancelled after 3 of 64 steps" in done.stdout
    with Image.open(tmp_path / "images.png") as picture:
        assert picture.size == (48, 16)


def test_the_example_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path / "none.bundle", tmp_path / "images.png")
    assert done.returncode == 1
    assert done.stderr.startswith("no bundle at")
