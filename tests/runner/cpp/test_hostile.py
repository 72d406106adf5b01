"""Bundles that are wrong, in every way that the Python reader is tested with: the same refusal, and never a crash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS
from hostile_cases import cases, identity, manifest

from arforge.runner import ArforgeError, Runner
from arforge.runner.errors import (
    BundleError,
    EngineError,
    FileSizeError,
    FormatVersionError,
    HashError,
    ManifestError,
    MissingFileError,
    NumericsError,
    PathError,
    ScheduleError,
)

CODES: dict[type[ArforgeError], int] = {
    ManifestError: STATUS["manifest"],
    FormatVersionError: STATUS["format_version"],
    PathError: STATUS["path"],
    MissingFileError: STATUS["missing_file"],
    FileSizeError: STATUS["file_size"],
    HashError: STATUS["hash"],
    BundleError: STATUS["bundle"],
    EngineError: STATUS["engine"],
    ScheduleError: STATUS["schedule"],
    NumericsError: STATUS["numerics"],
}


def expected_code(root: Path, schedule: str) -> int:
    """What the Python runner says of it."""
    try:
        with Runner.open(root, threads=1) as runner:
            runner.generate([0], [0], schedule=schedule)
    except ArforgeError as error:
        return CODES[type(error)]
    return 0


def test_hostile_bundles_are_refused_as_python_refuses_them(sanitized: Any, bundle: Path, tmp_path: Path) -> None:
    listed, lines, expected = list(cases()), [], []
    assert len({case.name for case in listed}) == len(listed) > 170
    for index, case in enumerate(listed):
        root = tmp_path / f"{index}.bundle"
        shutil.copytree(bundle, root)
        case.edit(root)
        lines.append(f"{root}\t{case.schedule}\n")
        expected.append((case.name, expected_code(root, case.schedule)))
    (tmp_path / "cases").write_text("".join(lines))
    command = [str(sanitized.program("generations")), "open", str(tmp_path / "cases")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    answers = [line.split("\t", 1) for line in done.stdout.removesuffix("\n").split("\n")]
    assert all(message for code, message in answers if code != "0")
    found = [(case.name, int(code)) for case, (code, _) in zip(listed, answers, strict=True)]
    assert found == expected
    assert expected[0] == ("sound", 0)
    assert sum(code == 0 for _, code in found) < 13


@pytest.mark.parametrize("checked", [0, 1])
def test_a_flipped_bit_is_found_where_hashes_are_asked_for(library: Any, bundle_copy: Path, checked: int) -> None:
    weights = bundle_copy / "graphs/fp32/weights/model.weights"
    cpp_abi.Runner(library, bundle_copy, check_hashes=1).close()
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    if not checked:
        cpp_abi.Runner(library, bundle_copy, check_hashes=0).close()
        return
    with pytest.raises(
        cpp_abi.Failure, match=r"model.weights is damaged: sha256 [0-9a-f]{64}, the manifest says"
    ) as refused:
        cpp_abi.Runner(library, bundle_copy, check_hashes=1)
    assert refused.value.status == STATUS["hash"]


@pytest.mark.parametrize(("key", "value"), [("caches", 1), ("kv_heads", 2**30), ("head_size", 24), ("queries", True)])
def test_dimensions_that_the_graph_does_not_have_are_refused(
    library: Any, bundle_copy: Path, key: str, value: int
) -> None:
    """Before anything of that size is allocated. The Python runner leaves it to ONNX Runtime."""
    manifest(lambda found: found["model"].update({key: value}))(bundle_copy)
    with pytest.raises(cpp_abi.Failure, match="the step graph of .* export it again") as refused:
        cpp_abi.Runner(library, bundle_copy)
    assert refused.value.status == STATUS["engine"]


def test_weights_that_are_no_numbers_are_noticed_and_forgotten(library: Any, bundle_copy: Path) -> None:
    weights = bundle_copy / "graphs/fp32/weights/model.weights"
    sound = weights.read_bytes()
    weights.write_bytes(np.full(len(sound) // 4, np.nan, np.float32).tobytes().ljust(len(sound), b"\0"))
    runner = cpp_abi.Runner(library, bundle_copy, threads=1)
    for _ in range(2):
        with pytest.raises(cpp_abi.Failure, match=r"step 0 of 64, image 0: the logits are non-finite") as refused:
            runner.generate([1, 2], schedule="ntp")
        assert refused.value.status == STATUS["numerics"]
    runner.close()
    with Runner.open(bundle_copy, threads=1) as theirs, pytest.raises(NumericsError, match="step 0 of 64, image 0"):
        theirs.generate([1, 2], schedule="ntp")


@pytest.mark.parametrize("width", [66, 2**20, 2**70])
def test_widths_that_no_graph_has_are_refused(library: Any, bundle_copy: Path, width: int) -> None:
    identity({"widths": [1, width]})(bundle_copy)
    with pytest.raises(cpp_abi.Failure, match="lists widths .* rebuild the engine") as refused:
        cpp_abi.Runner(library, bundle_copy)
    assert refused.value.status == STATUS["engine"]
