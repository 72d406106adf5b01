"""The fuzzer of the readers, for a moment: it must run, reach new code, and find nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_readers.py")


@pytest.mark.skipif(sys.platform != "linux", reason="atheris is built for Linux")
@pytest.mark.parametrize("target", ["manifest", "identity", "schedule", "checkpoint"])
def test_readers_raise_nothing_but_errors_of_arforge(target: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(PROGRAM),
        target,
        "-runs=1000",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    covered = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    assert "Done 1000 runs" in done.stderr
    assert covered[-1] > covered[0] > 0
