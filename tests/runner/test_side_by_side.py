"""Engines side by side: each gets the tokens of the first, whatever it prefers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arforge.runner import Runner, ScheduleError, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.side_by_side import GUIDANCE, side_by_side


def test_the_first_engine_decodes_what_the_runner_does(bundle: Path, runner: Runner) -> None:
    opened = open_bundle(bundle)
    engines = [OnnxRuntimeEngine(opened, "fp32", 1), OnnxRuntimeEngine(opened, "fp32", 1, widths=(2, 3, 7))]
    wanted = runner.generate([3, 8], schedule="zipar:4", guidance=GUIDANCE, greedy=True)
    tokens = np.full((2, 64), -1)
    for (step, buffers), (padded, others) in side_by_side(opened, "zipar:4", engines, [3, 8]):
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
    assert len(list(side_by_side(opened, "ntp", [engine], [0], 5))) == 5
    with pytest.raises(ScheduleError, match="does not fit a llamagen model"):
        next(side_by_side(opened, "par:4", [engine], [0]))
