"""Engines side by side: each gets the tokens of the first, whatever it prefers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arforge.runner import Runner, ScheduleError, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.conditions import class_conditions, sample_conditions
from arforge.runner.side_by_side import GUIDANCE, LogitAgreement, LogitComparison, side_by_side


def test_the_first_engine_decodes_what_the_runner_does(bundle: Path, runner: Runner) -> None:
    opened = open_bundle(bundle)
    engines = [OnnxRuntimeEngine(opened, "fp32", 1), OnnxRuntimeEngine(opened, "fp32", 1, widths=(2, 3, 7))]
    wanted = runner.generate([3, 8], schedule="zipar:4", guidance=GUIDANCE, greedy=True)
    tokens = np.full((2, 64), -1)
    conditions = class_conditions(opened.model, [3, 8])
    for (step, buffers), (padded, others) in side_by_side(opened, "zipar:4", engines, conditions):
        tokens[:, step.target_cells] = buffers.next_tokens[:, step.target_rows]
        assert padded.width in (2, 3, 7)
        np.testing.assert_array_equal(
            others.next_tokens[:, padded.target_rows], buffers.next_tokens[:, step.target_rows]
        )
        others.next_tokens[:] = 0  # what the second prefers is not used
    np.testing.assert_array_equal(tokens, wanted.tokens)


def test_it_stops_after_so_many_steps_and_checks_the_schedule(bundle: Path) -> None:
    opened = open_bundle(bundle)
    engine = OnnxRuntimeEngine(opened, "fp32", 1)
    assert len(list(side_by_side(opened, "ntp", [engine], sample_conditions(opened, 1), 5))) == 5
    with pytest.raises(ScheduleError, match="decodes in regions order, this model in raster order"):
        next(side_by_side(opened, "par:4", [engine], sample_conditions(opened, 1)))


def test_logits_are_compared_by_error_and_likeliest_token() -> None:
    comparison = LogitComparison()
    wanted = np.array([[[1.0, 4.0], [2.0, 0.0]]], np.float32)
    comparison.add(wanted, wanted + np.float32([[[0, -1], [0, 3]]]))
    comparison.add(wanted[:, :0], wanted[:, :0])  # a step that decides nothing
    assert comparison.result() == LogitAgreement(steps=2, largest_error=0.75, same_tokens=0.5)
    comparison.add(wanted, wanted * np.nan)
    comparison.add(wanted, wanted)
    assert np.isnan(comparison.result().largest_error)  # which no tolerance allows
