"""ZipAR whose rows start as each image's tokens allow, in C++: the tokens and the calls of the Python runner."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, replace
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
from hostile_cases import NTP, fitted, manifest
from tiny import CONFIG

from arforge.engines import onnxruntime
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families.llamagen import FAMILY
from arforge.runner import Runner, ScheduleError, compile_schedule
from arforge.runner.schedules.file import MAGIC, PREFIX, VERSION, dump
from arforge.runner.schedules.schedule import RowRules, Schedule

OPTIONS = [
    f"{first_row}{seed}{holes}{interval}"
    for first_row in ("", ",first-row=windowed")
    for seed in ("", ",seed=nearest")
    for holes in ("", ",holes=masked")
    for interval in ("", ",cfg-interval=9")
]


@pytest.mark.parametrize("window", [2, 3, 8])
def test_tokens_and_calls_are_pythons(both: tuple[cpp_abi.Runner, Runner], kind: str, window: int) -> None:
    ours, _ = both
    for settings in SETTINGS:
        whole: dict[str, Any] = {**asked(kind), **settings}
        found = compare(*both, **whole, schedule=f"zipar:adaptive={window}")
        fixed = ours.generate(**whole, schedule=f"zipar:{window}")
        assert (found.passes >= fixed.passes).all()
        if window == 2:
            assert len(set(found.passes.tolist())) > 1
            assert (found.tokens != fixed.tokens).any()


@pytest.mark.parametrize("options", OPTIONS)
def test_so_they_are_with_every_option(library: Any, bundle: Path, runner: Runner, options: str) -> None:
    ours = cpp_abi.Runner(library, bundle, threads=1)
    for window in (1, 4):
        compare(ours, runner, **asked("classes"), **SETTINGS[1], schedule=f"zipar:adaptive={window}{options}")
    ours.close()


@pytest.mark.parametrize("window", [2, 5, 9])
def test_rows_that_end_in_a_token_start_by_themselves_too(
    library: Any, ids_bundle: Path, ids_runner: Runner, window: int
) -> None:
    ours = cpp_abi.Runner(library, ids_bundle, threads=1)
    for interval in ("", ",cfg-interval=20"):
        whole: dict[str, Any] = {**asked("ids"), **SETTINGS[1]}
        found = compare(ours, ids_runner, **whole, schedule=f"zipar:adaptive={window}{interval}")
        if window == 9:
            wanted = ours.generate(**whole, schedule=f"ntp{interval}")
            np.testing.assert_array_equal(found.tokens, wanted.tokens)
            np.testing.assert_array_equal(found.passes, wanted.passes)
    ours.close()


def test_neither_tokens_nor_calls_depend_on_the_batch(both: tuple[cpp_abi.Runner, Runner], kind: str) -> None:
    ours, _ = both
    settings = {**asked(kind), **SETTINGS[1], "schedule": "zipar:adaptive=2,cfg-interval=20"}
    whole = compare(*both, **settings)
    for batch in (1, 5, 6):
        parted = ours.generate(**{**settings, "batch": batch})
        np.testing.assert_array_equal(parted.tokens, whole.tokens)
        np.testing.assert_array_equal(parted.passes, whole.passes)


@pytest.mark.parametrize("widths", [(2, 7), (8,), (1, 2, 3, 4, 5), (2,)])
def test_an_engine_of_fixed_widths_pads_to_them(
    library: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, widths: tuple[int, ...]
) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(BUNDLES[kind]), tmp_path / "widths.bundle"))
    onnxruntime.build(root, widths=widths)
    ours = cpp_abi.Runner(library, root, threads=1)
    settings: dict[str, Any] = {**asked(kind), "schedule": "zipar:adaptive=2"}
    with Runner.open(root, threads=1) as theirs:
        if max(widths) >= theirs.bundle.schedule("zipar:adaptive=2").widths[-1]:
            compare(ours, theirs, **settings)
        else:  # before anything is decoded: some image could need more
            with pytest.raises(Failure) as ours_refused:
                ours.generate(**settings, progress=pytest.fail)
            with pytest.raises(Exception, match="rebuild it with `arforge build --width") as theirs_refused:
                theirs.generate(**settings, progress=pytest.fail)
            assert ours_refused.value.message == str(theirs_refused.value)
            assert ours_refused.value.status == STATUS["engine"]
    ours.close()


def test_requests_of_other_schedules_share_an_engine(both: tuple[cpp_abi.Runner, Runner], kind: str) -> None:
    """Buffers of a width serve all calls of it, whatever the slots of their caches."""
    for schedule in ("zipar:adaptive=2", "ntp", "zipar:2", "zipar:adaptive=3", "jacobi:3", "zipar:adaptive=2"):
        compare(*both, **asked(kind), **SETTINGS[0], schedule=schedule)


def test_progress_is_pythons_and_a_cancelled_request_leaves_nothing(
    both: tuple[cpp_abi.Runner, Runner], kind: str
) -> None:
    check_progress_and_cancelling(*both, **asked(kind), schedule="zipar:adaptive=2", batch=4)


def test_weights_that_are_no_numbers_are_noticed_and_forgotten(library: Any, bundle_copy: Path) -> None:
    check_weights_that_are_no_numbers(library, bundle_copy, "zipar:adaptive=2")


@pytest.fixture(scope="module")
def stored_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """That stores schedules whose rows start by themselves."""
    root = tmp_path_factory.mktemp("stored") / "stored.bundle"
    schedules = ["zipar:adaptive=2", "zipar:adaptive=1,first-row=windowed,seed=nearest,holes=masked,cfg-interval=5"]
    export_bundle(ExportJob(FAMILY, CONFIG, checkpoint, None, root, schedules))
    onnxruntime.build(root)
    return root


def test_bundles_store_their_rules(library: Any, stored_bundle: Path, runner: Runner) -> None:
    ours = cpp_abi.Runner(library, stored_bundle, threads=1)
    with Runner.open(stored_bundle, threads=1) as theirs:
        assert all(schedule.rows for schedule in map(theirs.bundle.schedule, theirs.bundle.specifications))
        found = compare(ours, theirs, **asked("classes"))  # the first of them
        wanted = runner.generate(**asked("classes"), schedule="zipar:adaptive=2")
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        for schedule in theirs.bundle.specifications:
            compare(ours, theirs, **asked("classes"), **SETTINGS[1], schedule=schedule)
    ours.close()


def test_rows_that_start_by_themselves_are_clean_under_sanitizers(sanitized: Any, stored_bundle: Path) -> None:
    command = [str(sanitized.program("generations")), "threads", str(stored_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "36 generations, 0 wrong\n"), done.stderr[-6000:]


def test_arforge_run_decodes_so(release: Any, bundle: Path, runner: Runner, tmp_path: Path) -> None:
    place = tmp_path / "tokens.npy"
    words = [bundle, "--class", "3", "--seed", "7", "--schedule", "zipar:adaptive=2", "--tokens", place, "--quiet"]
    command = [release.program("arforge-run"), *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = runner.generate([3], seeds=[7], schedule="zipar:adaptive=2").tokens
    np.testing.assert_array_equal(np.load(place).ravel(), wanted.ravel())


@pytest.mark.parametrize(
    "specification",
    [
        "zipar:adaptive=0",
        "zipar:adaptive=1",
        "zipar:adaptive=10",
        "zipar:adaptive=-9223372036854775808",
        "zipar:adaptive=",
        "zipar:adaptive",
        "zipar:adaptive:4",
        "zipar:adaptive=4,jacobi=8",
        "zipar:adaptive=4,first-row=later",
        "zipar:adaptive=4,first-row=windowed",
        "zipar:adaptive=4,cfg-interval=-2",
        "zipar:adaptive=4,cfg-interval=1,cfg-interval=1",
    ],
)
def test_what_does_not_fit_is_refused_in_pythons_words(
    both: tuple[cpp_abi.Runner, Runner], kind: str, specification: str
) -> None:
    ours, theirs = both
    try:
        compare(ours, theirs, **asked(kind), schedule=specification)
    except ScheduleError as expected:
        with pytest.raises(Failure) as refused:
            ours.generate(**asked(kind), schedule=specification)
        assert refused.value.status == STATUS["schedule"]
        assert refused.value.message == str(expected).replace("did you mean 'jacobi'? ", "")
    else:
        assert specification in {"zipar:adaptive=1", "zipar:adaptive=4,first-row=windowed"}


def with_rows(data: bytes, rules: Any) -> bytes:
    _, _, length = PREFIX.unpack_from(data)
    start = PREFIX.size + length
    text = json.dumps({**json.loads(data[PREFIX.size : start]), "rows": rules}).encode()
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text + data[start:]


ADAPTIVE = compile_schedule("zipar:adaptive=2", (8, 8))
RULES = asdict(ADAPTIVE.rows or RowRules(1))
UNSOUND: dict[str, Schedule] = {
    "on drafts": replace(ADAPTIVE, jacobi=4),
    "one step short": replace(ADAPTIVE, steps=ADAPTIVE.steps[:-1]),
    "another table": replace(compile_schedule("zipar:3", (8, 8)), rows=ADAPTIVE.rows),
    "more zero slots": replace(ADAPTIVE, zero_slots=ADAPTIVE.zero_slots + 1),
}


@pytest.mark.parametrize(
    "rules",
    [
        *([], 3, "zipar", None),
        *({**RULES, "window": window} for window in (3, 0, 9, -1, -2, True, 1.5, 10**30)),
        *({**RULES, "cfg_interval": interval} for interval in (-2, None, 5)),
        *({**RULES, "row_end": end} for end in (0, -1)),
        {**RULES, "row_end": 0, "window": 0},
        *({**RULES, "seed": word} for word in ("other", [], "nearest", None)),
        *({**RULES, "holes": word} for word in ("masked", "windowed")),
        {**RULES, "first_row": "windowed"},
        {**RULES, "more": 1},
        {name: value for name, value in RULES.items() if name != "seed"},
    ],
    ids=str,
)
def test_files_whose_rules_do_not_fit_are_refused_in_pythons_words(library: Any, bundle_copy: Path, rules: Any) -> None:
    refused_alike(library, bundle_copy, with_rows(dump(ADAPTIVE), rules))


@pytest.mark.parametrize("schedule", UNSOUND.values(), ids=UNSOUND)
def test_files_of_other_tables_are_refused_in_pythons_words(
    library: Any, bundle_copy: Path, schedule: Schedule
) -> None:
    refused_alike(library, bundle_copy, dump(schedule))


def refused_alike(library: Any, root: Path, content: bytes) -> None:
    fitted(NTP, content)(root)
    manifest(lambda found: next(e for e in found["schedules"] if e["path"] == NTP).update(slots=ADAPTIVE.slots))(root)
    ours = cpp_abi.Runner(library, root, threads=1)
    with pytest.raises(Failure) as refused:
        ours.generate([1], schedule="ntp")
    ours.close()
    with Runner.open(root, threads=1) as theirs, pytest.raises(ScheduleError) as expected:
        theirs.generate([1], schedule="ntp")
    assert refused.value.status == STATUS["schedule"]
    same = str(expected.value).replace("None: use one of", "null: use one of")
    assert refused.value.message.removeprefix("schedules/") == same
