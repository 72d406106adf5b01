"""ZipAR that runs ahead on drafts: its own tokens in fewer calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_paces import asked

from arforge.engines import onnxruntime
from arforge.runner import Runner, compile_schedule
from arforge.runner.plan import make_plan
from arforge.runner.schedules.file import dump, load
from arforge.runner.schedules.visibility import masks

RULES = ("", ",first-row=windowed", ",seed=nearest", ",holes=masked,first-row=windowed", ",cfg-interval=9")


def equal(opened: Runner, settings: dict[str, Any], base: str, window: int) -> tuple[np.ndarray, int]:
    """Asserts that the tokens are the table's; the calls of each image, and those of the table."""
    wanted = opened.generate(**settings, schedule=base)
    found = opened.generate(**settings, schedule=f"{base},jacobi={window}")
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    return found.passes, wanted.steps


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("zipar", "window"), [(2, 7), (4, 6), (6, 4), (8, 5)])
def test_tokens_are_those_of_the_table(runner: Runner, zipar: int, window: int, rules: str) -> None:
    passes, steps = equal(runner, asked("classes"), f"zipar:{zipar}{rules}", window)
    if zipar >= 6:  # a window that holds several steps of the table
        assert (passes < steps).all()


@pytest.mark.parametrize("window", [2, 3, 7, 16])
def test_tokens_are_those_of_the_table_of_prompts_too(text_runner: Runner, window: int) -> None:
    equal(text_runner, asked("features"), "zipar:4", window)


@pytest.mark.parametrize(("zipar", "window"), [(2, 5), (3, 4), (5, 6)])
def test_tokens_are_those_of_the_table_where_rows_end_in_a_token(ids_runner: Runner, zipar: int, window: int) -> None:
    equal(ids_runner, asked("ids"), f"zipar:{zipar}", window)


def test_another_grid_with_grouped_heads(grouped_bundle: Path) -> None:
    with Runner.open(grouped_bundle, threads=1) as opened:
        settings = {"classes": [0, 3, 6], "guidance": 4.0}
        for zipar in (1, 3, 5):
            equal(opened, settings, f"zipar:{zipar}", 6)


@pytest.mark.parametrize("batch", [1, 3])
def test_neither_tokens_nor_passes_depend_on_the_batch(runner: Runner, batch: int) -> None:
    settings = {**asked("classes"), "schedule": "zipar:5,jacobi=6"}
    whole, parted = runner.generate(**settings), runner.generate(**settings, batch=batch)
    np.testing.assert_array_equal(parted.tokens, whole.tokens)
    np.testing.assert_array_equal(parted.passes, whole.passes)


def test_an_engine_of_fixed_widths_pads_to_them(bundle_copy: Path, runner: Runner) -> None:
    settings = {**asked("classes"), "schedule": "zipar:4,jacobi=6"}
    onnxruntime.build(bundle_copy, widths=[1, 7])
    with Runner.open(bundle_copy, threads=1) as padded:
        np.testing.assert_array_equal(padded.generate(**settings).tokens, runner.generate(**settings).tokens)


@pytest.mark.parametrize(("kind", "schedule"), [("classes", "zipar:4"), ("ids", "zipar:3"), ("ids", "ntp")])
def test_progress_counts_the_steps_of_the_table(runner: Runner, ids_runner: Runner, kind: str, schedule: str) -> None:
    opened = {"classes": runner, "ids": ids_runner}[kind]
    seen: list[tuple[int, int]] = []
    opened.generate(
        **asked(kind), schedule=f"{schedule},jacobi=5", progress=lambda done, steps: seen.append((done, steps))
    )
    steps = len(opened.bundle.schedule(schedule).steps)
    done = [done for done, _ in seen]
    assert {total for _, total in seen} == {steps}
    assert done == sorted(done)
    assert done[-1] == steps > done[-2]


grids = st.tuples(st.integers(1, 5), st.integers(1, 6))


@given(grids, st.integers(1, 6), st.sampled_from(RULES), st.booleans())
def test_a_line_sees_what_the_table_sees(grid: tuple[int, int], window: int, rules: str, ends: bool) -> None:
    if grid[0] * grid[1] < 2:
        return
    if ends:
        base, row_end = f"zipar:{min(window, grid[1]) + 1}", 0
    else:
        base, row_end = f"zipar:{min(window, grid[1])}{rules}", None
    table = compile_schedule(base, grid, row_end=row_end)
    schedule = compile_schedule(f"{base},jacobi=2", grid, row_end=row_end)
    assert schedule.steps == table.steps
    assert load(dump(schedule), "a.schedule") == schedule
    line = make_plan(schedule, None).line
    assert line is not None
    expected = np.concatenate(list(masks(table, table.slots)))
    found = line.sees(np.arange(len(line)))
    np.testing.assert_array_equal(found, expected[:, table.zero_slots : table.zero_slots + len(line)])
    np.testing.assert_array_equal(line.holes, expected[:, : table.zero_slots].sum(axis=1))
    ends_of_steps = np.cumsum([step.width for step in table.steps])
    assert line.steps.tolist() == [int((ends_of_steps <= count).sum()) for count in range(len(line) + 1)]
