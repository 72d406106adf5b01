"""How far to run ahead on drafts, by calls and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.engines.jacobi_windows import Window, rated, windows_to_try
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.conditions import sample_subjects


def test_a_window_costs_one_narrow_call_and_the_rest_at_its_width() -> None:
    found = rated(100, {2: 61.0, 8: 41.0}, {1: 1.0, 2: 1.5, 8: 4.0})
    assert found == [Window(2, 61.0, 0.91), Window(8, 41.0, 1.61)]


def test_windows_keep_to_the_cells_to_what_rounds_alike_and_to_raster_order(bundle: Path, arpg_bundle: Path) -> None:
    opened = open_bundle(bundle)
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1)
    assert windows_to_try(opened, engine) == [2, 3, 4, 5, 6, 8, 12, 16]
    engine.exact_width = 5
    assert windows_to_try(opened, engine) == [2, 3, 4, 5]
    engine.close()
    assert windows_to_try(open_bundle(arpg_bundle), engine) == []


def test_build_writes_down_what_it_measured_and_inspect_shows_it(
    bundle_copy: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.6, 6: 3.0, 8: 4.0, 12: 5.0, 16: 6.0}
    monkeypatch.setattr(onnxruntime, "measure", lambda engine, bundle, asked: {width: costs[width] for width in asked})
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--measure-jacobi"])
    assert done.exit_code == 0, done.output
    identity = open_bundle(bundle_copy).engine("onnxruntime", "fp32")
    calls = {one["inputs"]: one["calls"] for one in identity["jacobi"]}
    for window in (2, 8):
        subjects = sample_subjects(runner.bundle.model, 8).take(range(8))
        passes = runner.generate(**subjects, schedule=f"jacobi:{window}").passes
        assert calls[window] == pytest.approx(passes.mean(), abs=0.01)
    times = {window: (1 + (count - 1) * costs[window]) / 64 for window, count in calls.items()}
    best = min(times, key=lambda window: times[window])
    shown = CliRunner().invoke(main, ["inspect", str(bundle_copy)]).output
    for output in (done.output, shown):
        assert f"2: {calls[2]:g} calls, {times[2]:.3g}" in output
        assert f"; jacobi:{best} is the quickest" in output
    assert identity["widths"] is None


def test_where_no_window_pays_next_token_is_named(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "measure", lambda engine, bundle, asked: {width: float(width) for width in asked})
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--measure-jacobi"])
    assert "; ntp is the quickest" in done.output


@pytest.mark.parametrize("target", ["tensorrt-rtx"])
def test_it_is_for_onnxruntime_and_for_widths_of_its_own(bundle_copy: Path, target: str) -> None:
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--target", target, "--measure-jacobi"])
    assert done.exit_code == 1
    assert "--measure-jacobi is for ONNX Runtime" in done.output
    with pytest.raises(EngineError, match="measured at widths of its own: leave the widths out"):
        onnxruntime.build(bundle_copy, widths=[2], measure_jacobi=True)
