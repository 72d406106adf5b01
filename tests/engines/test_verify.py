from __future__ import annotations

import json
from pathlib import Path

import pytest

from arforge.engines.verify import check_contract, verify_bundle
from arforge.runner import ScheduleError, open_bundle
from arforge.runner.errors import HashError, VerificationError


def test_a_whole_bundle_passes_every_check(bundle: Path) -> None:
    lines: list[str] = []
    assert verify_bundle(bundle, lines.append).root == bundle
    for part in ("structure", "hashes", "schedule zipar:4: 40 steps decide 64 cells", "graph encoder", "engine"):
        assert [line for line in lines if line.startswith(part)], part


def test_a_bundle_of_tokens_only_passes_too(grouped_bundle: Path) -> None:
    lines: list[str] = []
    verify_bundle(grouped_bundle, lines.append)
    assert not [line for line in lines if "decoder" in line]


def test_a_flipped_bit_is_found(bundle_copy: Path) -> None:
    path = bundle_copy / "graphs/fp32/weights/model.weights"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HashError, match=r"model.weights is damaged"):
        verify_bundle(bundle_copy, print)


def test_a_schedule_that_differs_from_its_entry_is_found(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["schedules"][1]["steps"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ScheduleError, match="the manifest says"):
        verify_bundle(bundle_copy, print)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("step", "step-logits", r"output logits is .*expected none: export the bundle again"),
        ("step-logits", "step", r"output logits is missing, expected \('tensor\(float\)'"),
        ("decoder", "encoder", "is missing|expected none"),
    ],
)
def test_a_graph_of_another_kind_is_found(bundle: Path, name: str, file: str, message: str) -> None:
    opened = open_bundle(bundle)
    check_contract(opened, file, "fp32", opened.graph(file, "fp32"))
    with pytest.raises(VerificationError, match=message):
        check_contract(opened, name, "fp32", opened.graph(file, "fp32"))
