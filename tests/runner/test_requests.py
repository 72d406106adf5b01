"""What `Runner.open` and `Runner.generate` refuse, and what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arforge.runner import ArforgeError, BundleError, EngineError, RequestError, Runner, ScheduleError, compile_schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, "no classes given: name at least one"),
        ({"classes": [0, 10]}, "class 10 is out of range: use 0 to 9"),
        ({"classes": [-1]}, "class -1 is out of range"),
        ({"classes": [1.5]}, "class 1.5 is not a whole number: use 0 to 9"),
        ({"classes": [True]}, "class True is out of range"),
        ({"classes": [10**30]}, "class 1000000000000000000000000000000 is out of range"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images: give one seed an image"),
        ({"seeds": []}, "0 seeds for 1 images"),
        ({"seeds": [-1]}, r"seed -1 is out of range: use 0 to 18446744073709551615"),
        ({"seeds": [2**64]}, "seed 18446744073709551616 is out of range"),
        ({"seeds": [0.5]}, "seed 0.5 is not a whole number"),
        ({"guidance": 0.99}, r"guidance 0.99 is out of range: use 1 \(off\) to 1000"),
        ({"guidance": math.nan}, "guidance nan is out of range"),
        ({"guidance": math.inf}, "guidance inf is out of range"),
        ({"temperature": -0.1}, r"temperature -0.1 is out of range: use 0 \(greedy\) to 1000"),
        ({"temperature": math.nan}, "temperature nan is out of range"),
        ({"top_k": -1}, "top-k -1 is out of range: use 0 to 1073741824"),
        ({"top_p": 0}, r"top-p 0 is out of range: use a number in \(0, 1\]; 1 is off"),
        ({"top_p": 1.01}, "top-p 1.01 is out of range"),
        ({"top_p": -0.5}, "top-p -0.5 is out of range"),
        ({"top_p": math.nan}, "top-p nan is out of range"),
        ({"batch": 0}, "batch 0 is out of range: use 1 to"),
        ({"batch": -3}, "batch -3 is out of range"),
    ],
)
def test_arguments_out_of_range_are_refused(runner: Runner, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        runner.generate(**{"classes": [0], **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": [math.nan]},
        {"classes": [math.inf]},
        {"classes": ["3"]},
        {"seeds": [math.nan]},
        {"seeds": ["1"]},
        {"guidance": 1e39},
        {"temperature": 1e39},
        {"top_k": 2**63},
        {"top_k": 2.5},
        {"batch": 1.5},
    ],
    ids=str,
)
def test_arguments_that_are_no_such_numbers_are_refused_by_name(runner: Runner, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(arguments)).rstrip("es").replace("_", "-")):
        runner.generate(**{"classes": [0], **arguments})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("zipar:9", "window 9 does not fit a grid of 8x8"),
        ("zipper:2", "unknown schedule 'zipper:2'"),
        ("zipar:2,windw=1", "unknown option"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(runner: Runner, schedule: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        runner.generate([0], schedule=schedule)


def test_a_refused_request_leaves_the_runner_usable(runner: Runner) -> None:
    expected = runner.generate([1], [5]).tokens
    for arguments in ({"classes": [99]}, {"classes": [1], "schedule": "zipar:99"}):
        with pytest.raises(ArforgeError):
            runner.generate(**arguments)
    np.testing.assert_array_equal(runner.generate([1], [5]).tokens, expected)


def test_numpy_numbers_are_as_good_as_pythons(runner: Runner) -> None:
    expected = runner.generate([1, 2], [5, 2**64 - 1]).tokens
    seeds = np.array([5, 2**64 - 1], dtype=np.uint64)
    np.testing.assert_array_equal(runner.generate(np.array([1, 2]), seeds).tokens, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "openvino"}, "unknown target 'openvino': this arforge runs onnxruntime"),
        ({"precision": "int8"}, r"no onnxruntime int8 engine \(built: onnxruntime fp32\).*arforge build"),
        ({"threads": 0}, "0 threads: use at least 1"),
        ({"threads": -2}, "-2 threads: use at least 1"),
    ],
)
def test_opening_with_what_is_not_there_is_refused(bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Runner.open(bundle, **arguments)


def test_opening_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        Runner.open(tmp_path / "nothing.bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "3"}, "classes '3' are no list"),
        ({"classes": 3}, "classes 3 are no list"),
        ({"classes": None}, "nothing is asked for: give one of classes, prompts, features, ids"),
        ({"classes": {0: 1}}, "classes {0: 1} are no list"),
        ({"classes": np.array([0.0, 1.0])}, r"class .*0\.0.* is not a whole number"),
        ({"classes": np.array([True])}, "class .*True"),
        ({"classes": np.array([[0, 1]])}, "class .* is not a whole number"),
        ({"classes": np.array(0)}, r"classes array\(0\) are no list"),
        ({"classes": [None]}, "class None is not a whole number"),
        ({"seeds": "0"}, "seeds '0' are no list"),
        ({"seeds": 7}, "seeds 7 are no list"),
        ({"seeds": [None]}, "seed None is not a whole number"),
        ({"seeds": np.array([np.nan])}, "seed .*nan.* is not a whole number"),
        ({"guidance": "2"}, "guidance '2' is not a number"),
        ({"guidance": True}, "guidance True is not a number"),
        ({"guidance": 2 + 0j}, "is not a number"),
        ({"guidance": np.float32("nan")}, "guidance nan is out of range"),
        ({"guidance": np.array([[2.0]])}, "guidance .* is not a number"),
        ({"guidance": [[2.0], [1.0, 2.0]]}, "2 values of guidance for 1 images"),
        ({"guidance": [2.0, 3.0]}, "2 values of guidance for 1 images"),
        ({"temperature": b"1"}, "temperature b'1' is not a number"),
        ({"top_k": True}, "top-k True is out of range"),
        ({"top_k": np.float64(3)}, r"top-k .*3\.0.* is not a whole number"),
        ({"top_p": [None]}, "top-p None is not a number"),
        ({"greedy": "no"}, "greedy 'no' is not a whole number: use 0 to 1"),
        ({"greedy": None, "temperature": 1.0}, None),
        ({"batch": True}, "batch True is out of range"),
        ({"batch": "all"}, "batch 'all' is not a whole number"),
        ({"schedule": 3}, "schedule 3 is no text"),
        ({"schedule": ["ntp"]}, r"schedule \['ntp'\] is no text"),
        ({"known": "x"}, "known tokens are <U1"),
        ({"known": [[1, 2], [3]]}, "known tokens are rows of different lengths"),
        ({"known": np.zeros((8, 8))}, "known tokens are float64"),
        ({"known": np.ones((8, 8), bool)}, "known tokens are bool"),
        ({"known": np.full((8, 8), 2**64 - 1, np.uint64)}, "known tokens go from 18446744073709551615"),
        ({"progress": "bar"}, "progress 'bar' cannot be called"),
        ({"cancel": 1}, "cancel 1 has no is_set"),
    ],
    ids=str,
)
def test_arguments_of_another_type_are_refused(runner: Runner, arguments: dict[str, Any], message: str | None) -> None:
    if message is None:
        runner.generate(**{"classes": [0], **arguments})
        return
    with pytest.raises(RequestError, match=message):
        runner.generate(**{"classes": [0], **arguments})


@pytest.mark.parametrize("images", [None, "a.png", [[0]], 3, np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 16, 3), bool)])
def test_images_of_another_type_are_not_encoded(runner: Runner, images: Any) -> None:
    with pytest.raises(RequestError, match=r"images are .*: use "):
        runner.encode(images)


def test_a_bundle_whose_tokenizer_only_decodes_draws_and_says_what_reading_images_needs(
    drawing_bundle: Path, runner: Runner
) -> None:
    with Runner.open(drawing_bundle, threads=1) as opened:
        found = opened.generate([1], seeds=[3], schedule="zipar:4").images
        np.testing.assert_array_equal(found, runner.generate([1], seeds=[3], schedule="zipar:4").images)
        message = "no fp32 graph 'encoder': its image tokenizer only decodes; export it with one that has its encoder"
        with pytest.raises(BundleError, match=message):
            opened.encode(np.zeros((1, 16, 16, 3), np.uint8))


def test_zero_dimensional_arrays_are_numbers(runner: Runner) -> None:
    expected = runner.generate([1], guidance=2.0, top_k=3).tokens
    found = runner.generate([np.int32(1)], guidance=np.float32(2), top_k=np.uint8(3)).tokens
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, "None is no path of a bundle"),
        ({"path": 3}, "3 is no path of a bundle"),
        ({"path": b"x"}, "b'x' is no path of a bundle"),
        ({"target": None}, "unknown target None"),
        ({"target": ["onnxruntime"]}, "unknown target"),
        ({"precision": 32}, "precision 32 is no text"),
        ({"threads": "2"}, "'2' threads: use a whole number"),
        ({"threads": 2.0}, r"2\.0 threads: use a whole number"),
        ({"threads": 100_000}, "100000 threads: use at least 1, and here at most"),
    ],
    ids=str,
)
def test_opening_with_arguments_of_another_type_is_refused(
    bundle: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArforgeError, match=message):
        Runner.open(**{"path": bundle, **arguments})


@pytest.mark.parametrize(
    ("text", "grid"), [(None, (4, 4)), (3, (4, 4)), (["ntp"], (4, 4)), ("ntp", 4), ("ntp", "4x4"), ("ntp", (4.0, 4))]
)
def test_schedules_and_grids_of_another_type_are_refused(text: Any, grid: Any) -> None:
    with pytest.raises(ScheduleError, match="is no "):
        compile_schedule(text, grid)
