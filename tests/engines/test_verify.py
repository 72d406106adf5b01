from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arforge.engines import onnxruntime, onnxruntime_attention
from arforge.engines.verify import check_contract, check_drafts, drafted_window, verify_bundle
from arforge.runner import ScheduleError, open_bundle
from arforge.runner.errors import HashError, VerificationError


def test_a_whole_bundle_passes_every_check(bundle: Path) -> None:
    lines: list[str] = []
    assert verify_bundle(bundle, lines.append).root == bundle
    for part in ("structure", "hashes", "schedule zipar:4: 40 steps decide 64 cells", "graph encoder", "engine"):
        assert [line for line in lines if line.startswith(part)], part


@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_an_engine_of_a_graph_of_its_own_is_compared_with_the_bundles(
    name: str, request: pytest.FixtureRequest
) -> None:
    lines: list[str] = []
    verify_bundle(request.getfixturevalue(name), lines.append)
    [line] = [line for line in lines if "keys and values of" in line]
    assert re.search(r": keys and values of \d+ steps are those of step.onnx \(error (\de-0[5-9]|0e\+00) of the", line)


def test_a_graph_that_attends_otherwise_is_found(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime_attention.scaled_table
    monkeypatch.setattr(
        onnxruntime_attention, "scaled_table", lambda model, table, scale, made: real(model, table, 1.1 * scale, made)
    )
    onnxruntime.build(bundle_copy)
    with pytest.raises(VerificationError, match="writes keys or values with an error of .* rebuild the engine"):
        verify_bundle(bundle_copy, print)


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
        ("step-logits", "step", r"output logits is missing, expected float32 \[images, width, 32\]"),
        ("decoder", "encoder", "is missing|expected none"),
    ],
)
def test_a_graph_of_another_kind_is_found(bundle: Path, name: str, file: str, message: str) -> None:
    opened = open_bundle(bundle)
    check_contract(opened, file, "fp32", opened.graph(file, "fp32"))
    with pytest.raises(VerificationError, match=message):
        check_contract(opened, name, "fp32", opened.graph(file, "fp32"))


@pytest.mark.parametrize(("widths", "window"), [([1], 0), ([1, 4], 4), ([1, 16], 8), ([], 8)])
def test_drafts_keep_to_the_widths_that_an_engine_has(bundle_copy: Path, widths: list[int], window: int) -> None:
    onnxruntime.build(bundle_copy, widths=widths)
    opened = open_bundle(bundle_copy)
    assert drafted_window(opened, opened.engines[0]) == window
    if window:
        assert (
            check_drafts(opened, opened.engines[0], window) == f"jacobi:{window} gives ntp's tokens for 4 of 4 images"
        )
