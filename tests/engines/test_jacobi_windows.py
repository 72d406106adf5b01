"""How far to run ahead on drafts, by whole images decoded alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.engines import jacobi_windows, onnxruntime
from arforge.engines.jacobi_windows import batches_to_try, rated, try_windows, windows_to_try
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.conditions import sample_subjects
from arforge.runner.schedules.jacobi_windows import MeasuredWindow

COSTS = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.6, 6: 3.0, 8: 4.0, 12: 5.0, 16: 6.0}


def test_a_batch_takes_the_calls_of_its_slowest_image() -> None:
    passes, seconds = {2: [60, 80], 8: [40, 42]}, {1: 1.0, 2: 1.5, 8: 4.0}
    assert rated(100, 1, passes, seconds) == [MeasuredWindow(2, 70, 1.05, 1), MeasuredWindow(8, 41, 1.64, 1)]
    assert rated(100, 2, passes, seconds) == [MeasuredWindow(2, 80, 1.2, 2), MeasuredWindow(8, 42, 1.68, 2)]


def test_windows_keep_to_the_cells_to_what_rounds_alike_and_to_raster_order(bundle: Path, arpg_bundle: Path) -> None:
    opened = open_bundle(bundle)
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1)
    assert windows_to_try(opened, engine) == [2, 3, 4, 5, 6, 8, 12, 16]
    engine.exact_width = 5
    assert windows_to_try(opened, engine) == [2, 3, 4, 5]
    engine.close()
    assert windows_to_try(open_bundle(arpg_bundle), engine) == []


def test_large_grids_are_measured_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(bundle)
    assert batches_to_try(opened) == [1, 8]
    monkeypatch.setattr(jacobi_windows, "CELLS", 8 * opened.model.cells - 1)
    assert batches_to_try(opened) == [1]


def test_calls_are_those_of_images_that_are_decoded(bundle: Path, runner: Runner) -> None:
    opened = open_bundle(bundle)
    found = try_windows(opened, OnnxRuntimeEngine(opened, "fp32", threads=1), [2, 8])
    assert [(one.images, one.inputs) for one in found] == [(1, 2), (1, 8), (8, 2), (8, 8)]
    assert all(one.time > 0 for one in found)
    for one in found:
        subjects = sample_subjects(opened.model, 8).take(range(8))
        passes = runner.generate(**subjects, schedule=f"jacobi:{one.inputs}").passes
        assert one.calls == (passes.mean() if one.images == 1 else passes.max())


def made_of(costs: dict[int, dict[int, float]]) -> Any:
    """In place of timing: windows whose call in a batch costs so much."""

    def measured(_bundle: Any, _engine: Any, windows: list[int]) -> list[MeasuredWindow]:
        passes = {window: [64 // min(window, 4) + image for image in range(8)] for window in windows}
        return [one for images, seconds in costs.items() for one in rated(64, images, passes, seconds)]

    return measured


def test_build_writes_down_what_it_measured_and_inspect_shows_it(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = {window: float(window) for window in COSTS}
    monkeypatch.setattr(onnxruntime, "try_windows", made_of({1: COSTS, 8: dear}))
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--measure-jacobi"])
    assert done.exit_code == 0, done.output
    identity = open_bundle(bundle_copy).engine("onnxruntime", "fp32")
    assert identity["jacobi"][2] == {"images": 1, "inputs": 4, "calls": 19.5, "time": 0.396}
    assert identity["jacobi"][8] == {"images": 8, "inputs": 2, "calls": 39, "time": 1.219}
    assert identity["widths"] is None
    shown = CliRunner().invoke(main, ["inspect", str(bundle_copy)]).output
    for output in (done.output, shown):
        assert "batch 1: 2: 35.5 calls, 0.61, 3: 24.5 calls, 0.459, " in output
        assert "; batch 8: 2: 39 calls, 1.219" in output
        assert "jacobi:4 is the quickest; batch 8" in output
        assert "; ntp is the quickest" in output
    with Runner.open(bundle_copy, threads=1) as runner:
        assert runner.generate([1], schedule="jacobi:auto").schedule == "ntp,jacobi=4"
        assert runner.generate([1] * 8, schedule="jacobi:auto").schedule == "ntp"


@pytest.mark.parametrize("target", ["tensorrt-rtx"])
def test_it_is_for_onnxruntime_and_for_widths_of_its_own(bundle_copy: Path, target: str) -> None:
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--target", target, "--measure-jacobi"])
    assert done.exit_code == 1
    assert "--measure-jacobi is for ONNX Runtime" in done.output
    with pytest.raises(EngineError, match="measured at widths of its own: leave the widths out"):
        onnxruntime.build(bundle_copy, widths=[2], measure_jacobi=True)
