"""Schedules of grids whose rows end in a token: those that C++ compiles are Python's, input by input."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from arforge.runner import compile_schedule


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1), (3, 4), (5, 3), (9, 12)], ids=str)
def test_schedules_of_rows_that_end_in_a_token_are_pythons(sanitized: Any, grid: tuple[int, int]) -> None:
    ahead = [f"jacobi:{grid[0] * grid[1]}", "ntp,jacobi=2,cfg-interval=1"] if grid != (1, 1) else []
    specifications = ["ntp", "ntp,cfg-interval=4", *ahead, *(f"zipar:{window}" for window in range(2, grid[1] + 2))]
    adaptive = f"zipar:adaptive={grid[1] + 1}"
    for specification in [*specifications, adaptive, "zipar:adaptive=2", "zipar:2,cfg-interval=0"]:
        command = [sanitized.program("internals"), "schedule", specification, *grid, 3]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout) == [
            {
                "commit": step.commit,
                "guidance": step.guidance,
                "inputs": [[given.source.value, *given[1:]] for given in step.inputs],
                "targets": [list(target) for target in step.targets],
            }
            for step in compile_schedule(specification, grid, row_end=3).steps
        ]
