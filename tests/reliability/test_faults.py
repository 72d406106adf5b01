"""Writers that are killed or whose disk is full, a few trials of what `faults.py` does by hand; and neighbours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG

from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import BundleError, Runner, open_bundle
from arforge.runner.bundle.writer import changing

FAULTS = Path(__file__).with_name("faults.py")
TRIALS = os.environ.get("ARFORGE_FAULT_TRIALS", "1")


@pytest.fixture(scope="module")
def start(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `faults.py` would export to start from."""
    output = tmp_path_factory.mktemp("faults") / "start.bundle"
    export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, None, output, ["ntp"]))
    return output


@pytest.mark.usefixtures("programs_trace_once")  # which writes nothing: what is killed is more often what writes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("fault", "job"),
    [
        ("kill", "export"),
        ("kill", "calibrate"),
        ("kill", "build"),
        ("disk", "build"),
        ("kill", "build-rtx"),
        ("kill", "rebuild"),
        ("kill", "rebuild-fp32"),
        ("disk", "rebuild"),
        ("disk", "rebuild-rtx"),
    ],
)
def test_the_bundle_is_old_or_new_and_the_next_run_works(start: Path, fault: str, job: str) -> None:
    begin = [] if job == "export" else ["--start", start]
    command = [sys.executable, FAULTS, fault, job, "--times", TRIALS, *begin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    outcomes = [count for what, count in report.items() if ", then " in what]
    assert sum(outcomes) == int(TRIALS) > 0
    assert report["lost"] == 0


def test_two_builds_at_once_do_not_mix(bundle_copy: Path) -> None:
    """The one that comes second says so, and works once the first is done."""
    with (
        changing(bundle_copy),
        pytest.raises(BundleError, match="another process is changing .*: wait until it is don"),
    ):
        onnxruntime.build(bundle_copy)
    onnxruntime.build(bundle_copy)
    open_bundle(bundle_copy).check_hashes()


def test_a_reader_is_not_kept_off_by_a_writer(bundle_copy: Path) -> None:
    with changing(bundle_copy), Runner.open(bundle_copy, threads=1) as runner:
        assert runner.generate([1], schedule="zipar:2").tokens.shape == (1, 64)


USE_READ_ONLY = """
import sys
from arforge.runner import Runner, open_bundle
open_bundle(sys.argv[1]).check_hashes()
with Runner.open(sys.argv[1], threads=1) as runner:
    print(runner.generate([1], [3], schedule="zipar:2").tokens.tolist())
"""


def test_a_read_only_bundle_runs_and_stays_as_it_is(bundle: Path, tmp_path: Path, runner: Runner) -> None:
    """On a read-only mount where one can be made, since root may write anywhere; else without the permission."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    mount = ["mount", "--bind", "-o", "ro", str(copy), str(copy)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    try:
        done = subprocess.run([sys.executable, "-c", USE_READ_ONLY, copy], capture_output=True, text=True, check=True)
    finally:
        if mounted:
            subprocess.run(["umount", str(copy)], check=True)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    expected = runner.generate([1], [3], schedule="zipar:2").tokens
    np.testing.assert_array_equal(json.loads(done.stdout), expected)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
