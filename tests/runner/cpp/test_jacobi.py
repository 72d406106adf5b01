"""Running ahead on drafts in C++: next-token's tokens, and the calls of the Python runner."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from cpp_paces import (
    BUNDLES,
    SETTINGS,
    asked,
    check_progress_and_cancelling,
    check_weights_that_are_no_numbers,
    compare,
)
from hostile_cases import NTP, fitted, identity, manifest
from tiny import CONFIG

from arforge.calibration.int8 import CalibrationJob, calibrate
from arforge.calibration.ranges import Rule
from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import Runner, Schedule, ScheduleError, compile_schedule, open_bundle
from arforge.runner.schedules.file import dump
from arforge.runner.schedules.schedule import Source


@pytest.mark.parametrize("window", [2, 3, 8, 64])
def test_tokens_are_next_tokens_and_calls_pythons(both: tuple[cpp_abi.Runner, Runner], kind: str, window: int) -> None:
    ours, _ = both
    for settings in SETTINGS:
        whole: dict[str, Any] = {**asked(kind), **settings}
        wanted = ours.generate(**whole, schedule="ntp")
        found = compare(*both, **whole, schedule=f"jacobi:{window}")
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        assert (wanted.passes == 64).all()
        assert found.passes.mean() < found.passes.max() <= 64
        assert len(set(found.passes.tolist())) > 1


def test_neither_tokens_nor_calls_depend_on_the_batch(both: tuple[cpp_abi.Runner, Runner], kind: str) -> None:
    ours, _ = both
    settings = {**asked(kind), **SETTINGS[1], "schedule": "ntp,jacobi=6,cfg-interval=20"}
    whole = compare(*both, **settings)
    for batch in (1, 5, 6):
        parted = ours.generate(**{**settings, "batch": batch})
        np.testing.assert_array_equal(parted.tokens, whole.tokens)
        np.testing.assert_array_equal(parted.passes, whole.passes)
    np.testing.assert_array_equal(whole.tokens, ours.generate(**{**settings, "schedule": "ntp,cfg-interval=20"}).tokens)


@pytest.mark.parametrize("quantization", ["blocks", "rows", "static"])
def test_int8_tokens_and_calls_are_pythons(library: Any, bundle: Path, tmp_path: Path, quantization: str) -> None:
    root = Path(shutil.copytree(bundle, tmp_path / "int8.bundle"))
    if quantization == "static":
        calibrate(CalibrationJob(root, Rule("max", 100), samples=2, check=0, trials=0, threads=1))
    onnxruntime.build(root, "int8", quantization=quantization)
    ours = cpp_abi.Runner(library, root, precision="int8", threads=1)
    with Runner.open(root, precision="int8", threads=1) as theirs:
        for schedule in ("jacobi:4", "jacobi:16"):
            for settings in SETTINGS:
                compare(ours, theirs, **asked("classes"), **settings, schedule=schedule)
    ours.close()


@pytest.mark.parametrize("widths", [(1, 8), (8,), (3, 6, 40), (1,)])
def test_an_engine_of_fixed_widths_pads_to_them(
    library: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, widths: tuple[int, ...]
) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(BUNDLES[kind]), tmp_path / "widths.bundle"))
    onnxruntime.build(root, widths=widths)
    ours = cpp_abi.Runner(library, root, threads=1)
    settings: dict[str, Any] = {**asked(kind), "schedule": "jacobi:6"}
    with Runner.open(root, threads=1) as theirs:
        if max(widths) >= 6:
            found = compare(ours, theirs, **settings)
            np.testing.assert_array_equal(found.tokens, ours.generate(**{**settings, "schedule": "ntp"}).tokens)
        too_wide = {**settings, "schedule": f"jacobi:{max(widths) + 1}"}
        with pytest.raises(Failure) as ours_refused:
            ours.generate(**too_wide)
        with pytest.raises(Exception, match="rebuild it with `arforge build --width") as theirs_refused:
            theirs.generate(**too_wide)
        assert ours_refused.value.message == str(theirs_refused.value)
        assert ours_refused.value.status == STATUS["engine"]
    ours.close()


@pytest.mark.parametrize("exact", [1, 3, 5])
def test_running_ahead_keeps_to_the_width_that_rounds_as_one_token_does(
    library: Any, bundle_copy: Path, exact: int
) -> None:
    identity({"exact_width": exact})(bundle_copy)
    ours = cpp_abi.Runner(library, bundle_copy, threads=1)
    with Runner.open(bundle_copy, threads=1) as theirs:
        passes = [compare(ours, theirs, **asked("classes"), schedule=f"jacobi:{window}").passes for window in (8, 64)]
        np.testing.assert_array_equal(*passes)
        assert (passes[0] == 64).all() == (exact == 1)
    ours.close()


@pytest.mark.parametrize(
    ("kind", "schedules"),
    [
        (
            "classes",
            [
                "zipar:2,jacobi=7",
                "zipar:4,jacobi=6,first-row=windowed",
                "zipar:6,seed=nearest,jacobi=16",
                "zipar:3,holes=masked,first-row=windowed,cfg-interval=9,jacobi=9",
            ],
        ),
        ("features", ["zipar:4,jacobi=3", "zipar:6,jacobi=12"]),
        ("ids", ["zipar:2,jacobi=5", "zipar:5,jacobi=8,cfg-interval=20"]),
    ],
)
def test_tables_of_several_rows_run_ahead_too(
    both: tuple[cpp_abi.Runner, Runner], kind: str, schedules: list[str]
) -> None:
    ours, _ = both
    for schedule in schedules:
        base = ",".join(part for part in schedule.split(",") if not part.startswith("jacobi"))
        for settings in SETTINGS:
            found = compare(*both, **asked(kind), **settings, schedule=schedule)
            np.testing.assert_array_equal(found.tokens, ours.generate(**asked(kind), **settings, schedule=base).tokens)


@pytest.fixture(scope="module")
def stored_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """That stores schedules which run ahead."""
    root = tmp_path_factory.mktemp("stored") / "stored.bundle"
    export_bundle(
        ExportJob(
            FAMILY, CONFIG, checkpoint, None, root, ["jacobi:4", "ntp,jacobi=16,cfg-interval=9", "zipar:4,jacobi=8"]
        )
    )
    onnxruntime.build(root)
    return root


def test_bundles_store_how_far_they_run_ahead(library: Any, stored_bundle: Path, runner: Runner) -> None:
    ours = cpp_abi.Runner(library, stored_bundle, threads=1)
    with Runner.open(stored_bundle, threads=1) as theirs:
        found = compare(ours, theirs, **asked("classes"))  # the first of them
        np.testing.assert_array_equal(found.tokens, runner.generate(**asked("classes"), schedule="ntp").tokens)
        compare(ours, theirs, **asked("classes"), schedule="jacobi:16,cfg-interval=9")
    ours.close()


def test_running_ahead_is_clean_under_sanitizers(sanitized: Any, stored_bundle: Path) -> None:
    command = [str(sanitized.program("generations")), "threads", str(stored_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "36 generations, 0 wrong\n"), done.stderr[-6000:]


def backwards(schedule: Schedule) -> Schedule:
    """A line whose inputs are of cells that are long decided."""
    steps = [
        replace(step, inputs=tuple(given._replace(value=given.value // 2) for given in step.inputs))
        if step.inputs[0].source is Source.CELL
        else step
        for step in schedule.steps
    ]
    return replace(schedule, steps=tuple(steps))


def spread(schedule: Schedule) -> Schedule:
    """A line some of whose inputs decide nothing: the condition stands between them again."""
    steps = [
        replace(step, inputs=(schedule.steps[0].inputs[0]._replace(rank=2 * index), *renamed(step, 2 * index + 1)))
        for index, step in enumerate(schedule.steps)
    ]
    steps = [
        replace(step, inputs=step.inputs[1:], commit=1, targets=(step.targets[0]._replace(row=0),))
        if index % 3
        else replace(step, commit=2, targets=(step.targets[0]._replace(row=1),))
        for index, step in enumerate(steps)
    ]
    return replace(schedule, steps=tuple(steps))


def renamed(step: Any, rank: int) -> tuple[Any, ...]:
    return tuple(given._replace(rank=rank) for given in step.inputs)


@pytest.mark.parametrize("change", [backwards, spread])
def test_any_line_of_a_file_runs_ahead_with_its_own_tokens(
    library: Any, bundle_copy: Path, change: Callable[[Schedule], Schedule]
) -> None:
    line = change(compile_schedule("ntp", (8, 8)))
    found = []
    for jacobi in (0, 7):
        fitted(NTP, dump(replace(line, jacobi=jacobi)))(bundle_copy)
        slots_of(bundle_copy, line.slots)
        ours = cpp_abi.Runner(library, bundle_copy, threads=1)
        with Runner.open(bundle_copy, threads=1) as theirs:
            found.append(compare(ours, theirs, **asked("classes"), schedule="ntp"))
        ours.close()
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert (found[1].passes < found[0].passes).all()


def slots_of(root: Path, slots: int) -> None:
    manifest(lambda found: next(e for e in found["schedules"] if e["path"] == NTP).update(slots=slots))(root)


@pytest.mark.parametrize(
    "specification",
    [
        "jacobi:1",
        "jacobi:65",
        "jacobi:-3",
        "ntp,jacobi=x",
        "jacobi:",
        "zipar:2,jacobi=1",
        "zipar:99,jacobi=4",
        "jacobi:4,jacobi=4",
        "jacobi:auto,jacobi=4",
        "jacobi:Auto",
        "zipar:2,jacobi=auto",
    ],
)
def test_windows_that_do_not_fit_are_refused_in_pythons_words(
    both: tuple[cpp_abi.Runner, Runner], kind: str, specification: str
) -> None:
    ours, theirs = both
    with pytest.raises(Failure) as refused:
        ours.generate(**asked(kind), schedule=specification)
    with pytest.raises(ScheduleError) as expected:
        theirs.generate(**asked(kind), schedule=specification)
    assert (refused.value.status, refused.value.message) == (STATUS["schedule"], str(expected.value))


def fallen(schedule: Schedule) -> Schedule:
    """Whose inputs see what stands behind them in a step."""
    steps = [
        replace(step, inputs=tuple(given._replace(rank=step.inputs[0].rank) for given in step.inputs))
        for step in schedule.steps
    ]
    return replace(schedule, steps=tuple(steps))


@pytest.mark.parametrize(
    "content",
    [
        dump(fallen(replace(compile_schedule("zipar:4", (8, 8)), jacobi=4))),
        dump(replace(compile_schedule("par:4", (8, 8)), jacobi=4)),
        dump(replace(compile_schedule("ntp", (8, 8)), jacobi=65)),
        dump(compile_schedule("jacobi:4", (8, 8))).replace(b'"jacobi": 4', b'"jacobi": -'),
        dump(compile_schedule("jacobi:11", (8, 8))).replace(b'"jacobi": 11', b'"jacobi": -1'),
        dump(compile_schedule("jacobi:11", (8, 8))).replace(b'"jacobi": 11', b'"jacobi":1.5'),
    ],
    ids=["no line", "regions", "too far", "no JSON", "negative", "no whole number"],
)
def test_files_that_cannot_run_ahead_are_refused_in_pythons_words(
    library: Any, bundle_copy: Path, content: bytes
) -> None:
    fitted(NTP, content)(bundle_copy)
    ours = cpp_abi.Runner(library, bundle_copy, threads=1)
    with pytest.raises(Failure) as refused:
        ours.generate([1], schedule="ntp")
    ours.close()
    with Runner.open(bundle_copy, threads=1) as theirs, pytest.raises(ScheduleError) as expected:
        theirs.generate([1], schedule="ntp")
    assert refused.value.status == STATUS["schedule"]
    if "JSON" not in str(expected.value):  # each library has words of its own for that
        assert refused.value.message.removeprefix("schedules/") == str(expected.value)


def test_progress_is_pythons_and_a_cancelled_request_leaves_nothing(
    both: tuple[cpp_abi.Runner, Runner], kind: str
) -> None:
    check_progress_and_cancelling(*both, **asked(kind), schedule="jacobi:8", batch=4)


def test_weights_that_are_no_numbers_are_noticed_and_forgotten(library: Any, bundle_copy: Path) -> None:
    check_weights_that_are_no_numbers(library, bundle_copy, "jacobi:8")


AUTO = [
    {"images": images, "inputs": inputs, "calls": 30, "time": time}
    for images, inputs, time in ((1, 4, 0.7), (1, 2, 0.8), (3, 3, 0.9), (3, 6, 0.5), (4, 2, 0.97), (8, 12, 0.4))
]
OF_BEFORE = [{"inputs": 5, "calls": 20.5, "time": 0.7}, {"inputs": 9, "calls": 12, "time": 0.6}]


@pytest.mark.parametrize("widths", [None, [1, 2, 4]])
@pytest.mark.parametrize("measured", [AUTO, OF_BEFORE, []])
def test_left_to_the_engine_both_take_the_same_window_for_a_batch(
    library: Any, bundle_copy: Path, measured: list[dict[str, Any]], widths: list[int] | None
) -> None:
    identity({"jacobi": measured, "widths": widths, "exact_width": 40})(bundle_copy)
    ours = cpp_abi.Runner(library, bundle_copy, threads=1)
    whole = asked("classes")
    passes = set()
    with Runner.open(bundle_copy, threads=1) as theirs:
        wanted = ours.generate(**whole, schedule="ntp")
        for batch in (1, 2, 3, 4, 6):
            found = compare(ours, theirs, **whole, schedule="jacobi:auto", batch=batch)
            np.testing.assert_array_equal(found.tokens, wanted.tokens)
            passes.add(tuple(found.passes.tolist()))
    ours.close()
    assert len(passes) > 1 or not measured or (measured is OF_BEFORE and widths is not None)


def test_neither_runs_ahead_by_itself_where_wide_steps_round_otherwise(library: Any, bundle_copy: Path) -> None:
    path = open_bundle(bundle_copy).engines[0].path
    content = json.loads((bundle_copy / path).read_text())
    del content["exact_width"]
    identity(json.dumps({**content, "jacobi": AUTO}).encode())(bundle_copy)
    ours = cpp_abi.Runner(library, bundle_copy, threads=1)
    with Runner.open(bundle_copy, threads=1) as theirs:
        found = compare(ours, theirs, **asked("classes"), schedule="jacobi:auto", batch=1)
    ours.close()
    assert (found.passes == 64).all()
