"""Prompts in the C++ runner: by their features it gives the tokens of the Python runner, and the same refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure, refused_alike

from arforge.engines import onnxruntime
from arforge.runner import Runner, open_bundle
from arforge.runner.conditions import sample_features
from arforge.runner.errors import NumericsError, RequestError

SEEDS = [9, 2**64 - 1, 6, 0]
SCHEDULES = ["ntp", "zipar:4", "zipar:2", "zipar:3,first-row=windowed,seed=nearest,holes=masked,cfg-interval=20"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance": 7.5, "greedy": True},
    {"guidance": 2.0, "temperature": 0.7, "top_k": 9},
    {"guidance": 1.0, "temperature": 1.3, "top_p": 0.8},
    {"guidance": 1.0, "greedy": True},
]


@pytest.fixture
def ours(library: Any, text_bundle: Path) -> Iterator[cpp_abi.Runner]:
    opened = cpp_abi.Runner(library, text_bundle, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def features(text_runner: Runner) -> list[np.ndarray]:
    """Of four prompts of unequal lengths."""
    return sample_features(text_runner.bundle.model, 4)


def of_lengths(*lengths: int, width: int = 48) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.standard_normal((length, width), np.float32) * 0.2 for length in lengths]


def compare(ours: cpp_abi.Runner, theirs: Runner, features: list[np.ndarray], **settings: Any) -> np.ndarray:
    expected = theirs.generate(features=features, **settings)
    found = ours.generate(features=features, **settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.steps == expected.steps
    assert found.condition_seconds > 0
    return found.tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_and_images_are_pythons(
    ours: cpp_abi.Runner, text_runner: Runner, features: list[np.ndarray], schedule: str
) -> None:
    drawn = [compare(ours, text_runner, features, seeds=SEEDS, schedule=schedule, **each) for each in SETTINGS]
    assert not (drawn[0] == drawn[2]).all()
    compare(ours, text_runner, features, schedule=schedule, batch=3, guidance=[7.5, 1.0, 2.0, 1.0])


@pytest.mark.parametrize(
    "lengths",
    [(1,), (120,), (2, 1), (120, 1, 60), (5, 5, 5, 5), (64, 65, 66), tuple(range(1, 13))],
    ids=str,
)
def test_prompts_of_all_lengths_are_pythons(
    ours: cpp_abi.Runner, text_runner: Runner, lengths: tuple[int, ...]
) -> None:
    compare(ours, text_runner, of_lengths(*lengths), schedule="zipar:4")
    compare(ours, text_runner, of_lengths(*lengths), schedule="zipar:4", batch=2, guidance=1.0)


def test_an_image_alone_is_what_it_is_in_a_batch(ours: cpp_abi.Runner, features: list[np.ndarray]) -> None:
    """And what it is in another runner, at another place, beside the same prompt."""
    given = [*features, features[1]]
    together = ours.generate(features=given, seeds=[*SEEDS, 5], schedule="zipar:2").tokens
    for image, (one, seed) in enumerate(zip(given, [*SEEDS, 5], strict=True)):
        np.testing.assert_array_equal(
            ours.generate(features=[one], seeds=[seed], schedule="zipar:2").tokens[0], together[image]
        )
    back = ours.generate(features=given[::-1], seeds=[5, *SEEDS[::-1]], schedule="zipar:2", batch=2).tokens
    np.testing.assert_array_equal(back[::-1], together)


def test_many_prompts_one_after_another_are_pythons(ours: cpp_abi.Runner, text_runner: Runner) -> None:
    """More unconditional prompts, one a length, than are kept."""
    for length in [*range(2, 16), 3, 15, 2]:
        compare(ours, text_runner, of_lengths(length, length + 1), schedule="zipar:4")


@pytest.mark.parametrize("widths", [(1, 3, 5), (8,), (64,)])
def test_padded_chunks_and_steps_give_the_same_tokens(
    library: Any, text_bundle: Path, tmp_path: Path, features: list[np.ndarray], widths: tuple[int, ...]
) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "widths.bundle"))
    onnxruntime.build(root, widths=widths)
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        for schedule in ("ntp", "zipar:4"):
            compare(ours, theirs, [*features, *of_lengths(120)], schedule=schedule)
    ours.close()


def test_int8_in_blocks_is_pythons(library: Any, text_bundle: Path, tmp_path: Path, features: list[np.ndarray]) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "int8.bundle"))
    onnxruntime.build(root, "int8", quantization="blocks")
    ours = cpp_abi.Runner(library, root, precision="int8", threads=1)
    with Runner.open(root, precision="int8", threads=1) as theirs:
        for settings in ({}, {"greedy": True, "guidance": 2.0}):
            compare(ours, theirs, features, schedule="zipar:4", **settings)
    ours.close()


def test_facts_say_what_a_prompt_may_be(ours: cpp_abi.Runner) -> None:
    found = ours.facts()
    assert (found.classes, found.feature_slots, found.feature_width) == (0, 120, 48)


def damaged(one: np.ndarray, value: float) -> np.ndarray:
    wrong = one.copy()
    wrong[-1, 3] = value
    return wrong


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (of_lengths(3, 121), "the features: prompt 1 has 121 rows, the model has room for 1 to 120: leave out padding"),
        (of_lengths(3, 0), "the features: prompt 1 has 0 rows, the model has room for 1 to 120: leave out padding"),
        (
            of_lengths(3, width=47),
            "the features: prompt 0 has rows of 47 numbers, the model reads 48: use the text encoder",
        ),
        (
            [*of_lengths(3), damaged(of_lengths(4)[0], np.nan)],
            "the features: prompt 1 holds numbers that are not finite in float32: encode it",
        ),
        (
            [damaged(of_lengths(4)[0], -np.inf)],
            "prompt 0 holds numbers that are not finite in float32: encode it in float32",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused_in_pythons_words(
    ours: cpp_abi.Runner, text_runner: Runner, given: list[np.ndarray], message: str
) -> None:
    assert message in refused_alike(ours, text_runner, features=given)


def test_features_and_classes_are_for_models_that_take_them(
    library: Any, ours: cpp_abi.Runner, bundle: Path, runner: Runner, text_runner: Runner, features: list[np.ndarray]
) -> None:
    other = cpp_abi.Runner(library, bundle, threads=1)
    cases = ((other, runner, {"features": features}), (ours, text_runner, {"classes": [1]}))
    for cpp, python, asked in cases:
        with pytest.raises(RequestError) as expected:
            python.generate(**asked)
        with pytest.raises(Failure) as refused:
            cpp.generate(**asked)
        assert refused.value.status == STATUS["request"]
        assert refused.value.message.startswith(str(expected.value))
    other.close()


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"classes": [1], "features": of_lengths(3)}, "request", "classes and features are given: give one of"),
        ({"classes": []}, "request", "no features given: name at least one"),
        ({"features": of_lengths(3), "lengths": None}, "argument", "lengths is NULL"),
        (
            {"features": of_lengths(3), "width": 2**60},
            "request",
            "the features: prompt 0 has 3 rows of 1152921504606846976 numbers, which is out of range",
        ),
        ({"features": of_lengths(3), "known": np.full((8, 9), -1)}, "schedule", "cannot keep cells or go beyond"),
    ],
)
def test_requests_that_do_not_fit_give_their_codes(
    ours: cpp_abi.Runner, asked: dict[str, Any], status: str, message: str
) -> None:
    with pytest.raises(Failure) as refused:
        ours.generate(**asked)
    assert (refused.value.status, message in refused.value.message) == (STATUS[status], True), refused.value.message


@pytest.mark.parametrize("graph", ["condition", "step"])
def test_weights_that_are_no_numbers_are_noticed_and_forgotten(
    library: Any, text_bundle: Path, tmp_path: Path, features: list[np.ndarray], graph: str
) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "damaged.bundle"))
    weights = root / next(each.weights for each in open_bundle(root).graphs if each.name == graph)
    sound = weights.read_bytes()
    weights.write_bytes(np.full(len(sound) // 4, np.nan, np.float32).tobytes().ljust(len(sound), b"\0"))
    ours = cpp_abi.Runner(library, root, threads=1)
    for _ in range(2):
        with pytest.raises(Failure) as refused:
            ours.generate(features=features[:1], schedule="ntp")
        assert refused.value.status == STATUS["numerics"]
    ours.close()
    with Runner.open(root, threads=1) as theirs, pytest.raises(NumericsError) as expected:
        theirs.generate(features=features[:1], schedule="ntp")
    assert refused.value.message == re.sub(", first seen[^;]*", "", str(expected.value))
    assert "the prompt of image 0: the logits are non-finite in its first 11 tokens of 12" in refused.value.message


def test_a_prompt_that_makes_no_numbers_leaves_the_runner_usable(
    ours: cpp_abi.Runner, text_runner: Runner, features: list[np.ndarray]
) -> None:
    """Numbers so large that the decoder's sums overflow."""
    large = np.sign(of_lengths(40)[0]) * np.float32(3e38)
    for runner, error in ((ours, Failure), (text_runner, NumericsError)):
        with pytest.raises(error, match="image 4: the logits are non-finite in its first 39 tokens of 40"):
            runner.generate(features=[*features, large])
    compare(ours, text_runner, features, schedule="zipar:4")


def test_a_cancelled_request_leaves_the_runner_usable(
    ours: cpp_abi.Runner, text_runner: Runner, features: list[np.ndarray]
) -> None:
    with pytest.raises(Failure, match="cancelled after 3 of 80 steps"):
        ours.generate(features=features, schedule="zipar:4", batch=2, progress=lambda done, _: done == 3)
    compare(ours, text_runner, features, schedule="zipar:4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 47}, r"the condition graph of .* input features is \[-1, -1, 48\] where -1 is open, expected"),
        ({"slots": 64}, "the features: prompt 0 has 65 rows, the model has room for 1 to 64"),
        ({"kind": "class", "classes": 3, "first_class": 32, "null_class": 35}, "the step graph of .* it has"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    library: Any, text_bundle: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    root = Path(shutil.copytree(text_bundle, tmp_path / "other.bundle"))
    manifest = json.loads((root / "manifest.json").read_text())
    condition = manifest["model"]["condition"]
    manifest["model"]["condition"] = change if "kind" in change else {**condition, **change}
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Failure, match=message):
        cpp_abi.Runner(library, root, threads=1).generate(features=of_lengths(65, width=change.get("width", 48)))
