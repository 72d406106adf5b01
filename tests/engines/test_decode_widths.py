"""Widths by what they cost: the choice, the measurement, and what `arforge build --measure-widths` leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.engines.decode_widths import GAIN, choose, measure, stored_widths
from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ({1: 10, 2: 20, 4: 40}, None),
        ({1: 20, 2: 10, 4: 40}, (2, 4)),
        ({1: 20, 2: 30, 4: 10}, (4,)),
        ({1: 20, 2: 10, 4: 15}, (2, 4)),
        ({1: 10.1, 2: 10}, None),  # within what one measurement differs from the next
        ({1: 10.5, 2: 10}, (2,)),
        ({3: 1}, None),
    ],
)
def test_a_width_goes_where_a_wider_one_is_quicker(seconds: dict[int, float], kept: tuple[int, ...] | None) -> None:
    assert choose(seconds) == kept


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-4, 1), min_size=1))
def test_padding_costs_no_step_more_and_saves_each_padded_one_something(seconds: dict[int, float]) -> None:
    kept = choose(seconds) or tuple(sorted(seconds))
    assert max(kept) == max(seconds)
    assert sorted(kept) == list(kept)
    assert set(kept) <= seconds.keys()
    for width in seconds.keys() - set(kept):
        assert min(seconds[wider] for wider in kept if wider > width) <= seconds[width] * (1 - GAIN)


@pytest.mark.parametrize("name", ["bundle", "arpg_bundle"])
def test_every_width_of_the_stored_schedules_is_timed(name: str, request: pytest.FixtureRequest) -> None:
    opened = open_bundle(request.getfixturevalue(name))
    widths = stored_widths(opened)
    schedules = [opened.schedule(name) for name in opened.specifications]
    expected = {width for schedule in schedules for width in schedule.widths}
    assert expected <= set(widths)
    engine = OnnxRuntimeEngine(opened, "fp32", threads=1)
    found = measure(engine, opened, widths)
    engine.close()
    assert list(found) == widths
    assert all(seconds > 0 for seconds in found.values())


def test_build_writes_down_what_it_measured_and_inspect_shows_it(
    bundle_copy: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle_copy)
    widths = stored_widths(opened)
    assert len(widths) > 2
    times = {width: 0.001 * (width if width > widths[0] else 50) for width in widths}  # the narrowest is slow
    monkeypatch.setattr(onnxruntime, "measure", lambda engine, bundle, asked: {width: times[width] for width in asked})
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--measure-widths"])
    assert done.exit_code == 0, done.output
    identity = open_bundle(bundle_copy).engine("onnxruntime", "fp32")
    assert identity["widths"] == widths[1:]
    assert identity["width_milliseconds"] == {str(width): pytest.approx(1000 * times[width]) for width in widths}
    line = f"ms a step by width: {widths[0]}: 50, "
    assert line in done.output
    shown = CliRunner().invoke(main, ["inspect", str(bundle_copy)]).output
    assert line in shown
    assert f"the others are padded to {', '.join(map(str, widths[1:]))}" in shown
    with Runner.open(bundle_copy, threads=1) as padded:
        found = padded.generate([1, 2], schedule="zipar:2", greedy=True).tokens
    np.testing.assert_array_equal(found, runner.generate([1, 2], schedule="zipar:2", greedy=True).tokens)


def test_real_times_are_written_down(bundle_copy: Path) -> None:
    identity = onnxruntime.build(bundle_copy, measure_widths=True).identity
    times = identity["width_milliseconds"]
    assert [int(width) for width in times] == stored_widths(open_bundle(bundle_copy))
    assert all(value > 0 for value in times.values())
    assert open_bundle(bundle_copy).engine("onnxruntime", "fp32") == identity


def test_widths_are_given_or_measured(bundle_copy: Path) -> None:
    with pytest.raises(EngineError, match="widths are either given or measured: leave one out"):
        onnxruntime.build(bundle_copy, widths=[2], measure_widths=True)
    done = CliRunner().invoke(main, ["build", str(bundle_copy), "--target", "tensorrt-rtx", "--measure-widths"])
    assert done.exit_code == 1
    assert "--measure-widths is for ONNX Runtime: name TensorRT's widths with --width" in done.output
