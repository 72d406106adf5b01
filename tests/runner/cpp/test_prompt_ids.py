"""Prompts by the ids of their tokens in the C++ runner, through the text encoder of the bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure, refused_alike
from tiny_text import DIMENSIONS, SLOTS

from arforge.runner import EngineError, Runner, open_bundle
from arforge.runner.errors import NumericsError

PROMPTS = ["a cat on the mat", "two cats, a dog; and a mat!", "the dog", "a cat on the mat"]
BEYOND = DIMENSIONS["vocab_size"]
USAGE_ERROR, REQUEST_ERROR, ENGINE_ERROR = 2, 102, 112


@pytest.fixture(scope="module")
def theirs(words_bundle: Path) -> Iterator[Runner]:
    with Runner.open(words_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def ours(library: Any, words_bundle: Path) -> Iterator[cpp_abi.Runner]:
    opened = cpp_abi.Runner(library, words_bundle, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ids(theirs: Runner) -> list[np.ndarray]:
    return theirs._conditioner._encoder.ids(PROMPTS, cleaning=True)


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "greedy": True}, {"guidance": 1.0, "batch": 3}], ids=str)
def test_words_features_and_ids_give_the_same_images_in_both_runners(
    ours: cpp_abi.Runner, theirs: Runner, ids: list[np.ndarray], settings: dict[str, Any]
) -> None:
    settings = {"seeds": [9, 2**64 - 1, 6, 0], "schedule": "zipar:4", **settings}
    expected = theirs.generate(prompts=PROMPTS, **settings)
    features = theirs._conditioner._encoder.features_of_ids(ids)
    for found in (
        theirs.generate(ids=ids, **settings),
        theirs.generate(features=features, **settings),
        ours.generate(features=features, **settings),
        ours.generate(ids=ids, **settings),
    ):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.images, expected.images)
        assert found.condition_seconds > 0


def test_prompts_of_all_lengths_are_pythons(ours: cpp_abi.Runner, theirs: Runner) -> None:
    random = np.random.default_rng(3)
    for lengths in ((1,), (SLOTS,), (SLOTS, 1, 7, 7)):
        given = [random.integers(0, BEYOND, length) for length in lengths]
        expected = theirs.generate(ids=given, schedule="zipar:4").tokens
        np.testing.assert_array_equal(ours.generate(ids=given, schedule="zipar:4").tokens, expected)


REFUSED: list[tuple[list[np.ndarray], str]] = [
    (
        [np.array([5, 1]), np.ones(SLOTS + 1, int)],
        f"the ids: prompt 1 has {SLOTS + 1} tokens, the model has room for 1",
    ),
    ([np.array([5, 1]), np.ones(0, int)], "the ids: prompt 1 has 0 tokens, the model has room for 1 to 24: leave out"),
    ([np.array([5, -1, -3])], "the ids: prompt 0 holds -3: ids are 0 or more, as the text encoder's own tokenizer"),
    ([np.array([-(2**63), 1])], "the ids: prompt 0 holds -9223372036854775808: ids are 0 or more"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_ids_that_do_not_fit_are_refused_in_pythons_words(
    ours: cpp_abi.Runner, theirs: Runner, given: list[np.ndarray], message: str
) -> None:
    assert message in refused_alike(ours, theirs, ids=given)


@pytest.mark.parametrize("name", ["bundle", "text_bundle"])
def test_ids_are_for_bundles_with_a_text_encoder(library: Any, request: pytest.FixtureRequest, name: str) -> None:
    root = request.getfixturevalue(name)
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        refused_alike(ours, theirs, ids=[np.array([5, 1])])
    ours.close()


@pytest.mark.parametrize("wrong", [BEYOND, 2**31, 2**63 - 1])
def test_ids_beyond_the_encoders_table_are_an_engines_error_and_no_more(
    ours: cpp_abi.Runner, theirs: Runner, ids: list[np.ndarray], wrong: int
) -> None:
    given = [*ids, np.array([5, wrong, 1])]
    with pytest.raises(Failure, match=r"ONNX Runtime failed in the text encoder of .*words\.bundle: ") as refused:
        ours.generate(ids=given)
    assert refused.value.status == STATUS["engine"]
    with pytest.raises(EngineError, match="ONNX Runtime failed in the text encoder of "):
        theirs.generate(ids=given)
    found = ours.generate(ids=ids, schedule="zipar:4").tokens
    np.testing.assert_array_equal(found, theirs.generate(ids=ids, schedule="zipar:4").tokens)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"classes": [1]}, "request", "classes and ids are given: give one of classes, features, ids"),
        ({"features": [np.zeros((2, 32), np.float32)]}, "request", "features and ids are given: give one of"),
        ({"lengths": None}, "argument", "lengths is NULL"),
        (
            {"lengths": (cpp_abi.c_size_t * 1)(2**60)},
            "request",
            "prompt 0 has 1152921504606846976 tokens, which is out",
        ),
        ({"images": 0}, "request", "no features given: name at least one"),
    ],
)
def test_requests_that_do_not_fit_give_their_codes(
    ours: cpp_abi.Runner, asked: dict[str, Any], status: str, message: str
) -> None:
    with pytest.raises(Failure) as refused:
        ours.generate(ids=[np.array([5, 1])], **asked)
    assert (refused.value.status, message in refused.value.message) == (STATUS[status], True), refused.value.message


def test_weights_that_are_no_numbers_are_noticed(library: Any, words_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(words_bundle, tmp_path / "damaged.bundle"))
    weights = root / next(each.weights for each in open_bundle(root).graphs if each.name == "text")
    sound = weights.read_bytes()
    weights.write_bytes(np.full(len(sound) // 4, np.nan, np.float32).tobytes().ljust(len(sound), b"\0"))
    ours = cpp_abi.Runner(library, root, threads=1)
    with pytest.raises(Failure) as refused:
        ours.generate(ids=[np.array([5, 1])])
    ours.close()
    with Runner.open(root, threads=1) as theirs, pytest.raises(NumericsError) as expected:
        theirs.generate(ids=[np.array([5, 1])])
    assert (refused.value.status, refused.value.message) == (STATUS["numerics"], str(expected.value))


def test_a_text_encoder_of_another_contract_is_refused(library: Any, words_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(words_bundle, tmp_path / "other.bundle"))
    manifest = json.loads((root / "manifest.json").read_text())
    graphs = {graph["name"]: graph for graph in manifest["graphs"]}
    graphs["text"].update({"path": graphs["condition"]["path"], "weights": graphs["condition"]["weights"]})
    (root / "manifest.json").write_text(json.dumps(manifest))
    ours = cpp_abi.Runner(library, root, threads=1)
    for _ in range(2):
        with pytest.raises(Failure, match=r"the text encoder of .* does not fit the manifest: input ids is missing"):
            ours.generate(ids=[np.array([5, 1])])
    ours.close()


def run(program: Path, bundle: Path, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (program, bundle, *words, "--threads", 1, "--quiet")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def saved(folder: Path, ids: list[np.ndarray], kind: str) -> list[Any]:
    """The options that name files of these, padded, and of their mask."""
    array, mask = np.full((len(ids), SLOTS), -100, kind), np.zeros((len(ids), SLOTS), np.int64)
    for row, one in enumerate(ids):
        array[row, : len(one)], mask[row, : len(one)] = one, 1
    np.save(folder / "ids.npy", array)
    np.save(folder / "mask.npy", mask)
    return ["--prompt-ids", folder / "ids.npy", "--prompt-ids-mask", folder / "mask.npy"]


@pytest.mark.parametrize(("build", "kind"), [("release", "<i8"), ("release", "<i4"), ("sanitized", "<i8")])
def test_arforge_run_gives_pythons_tokens(
    request: pytest.FixtureRequest, words_bundle: Path, theirs: Runner, ids: list[np.ndarray], tmp_path: Path,
    build: str, kind: str,
) -> None:  # fmt: skip
    program = request.getfixturevalue(build).program("arforge-run")
    words = ("--samples", 6, "--seed", 7, "--schedule", "zipar:4", "--tokens", tmp_path / "t.npy")
    done = run(program, words_bundle, *saved(tmp_path, ids, kind), *words, ASAN_OPTIONS="detect_leaks=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 images, zipar:4: 40 steps" in done.stdout
    expected = theirs.generate(ids=[*ids, *ids[:2]], seeds=range(7, 13), schedule="zipar:4", images=False)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), expected.tokens)


HOLES, WIDE = np.array([[1, 0, 1]]), np.array([[5, 2**40, 1]])
WRONG: list[tuple[Any, Any, str]] = [
    (np.ones((1, 3, 4), int), None, "ids.npy holds int64 [1, 3, 4]: expected int64 or int32 [prompts, tokens], padded"),
    (np.ones((1, 3), np.float32), None, "ids.npy holds float32 [1, 3]: expected int64 or int32"),
    (np.ones((1, 3), np.uint32), None, "ids.npy holds uint32 [1, 3]: expected int64 or int32"),
    (np.ones((1, 3), np.int16), None, "ids.npy holds int16 [1, 3]: expected int64 or int32"),
    (np.ones((1, 3), ">i8"), None, "holds numbers of type '>i8': save them as little-endian"),
    (np.ones((0, 3), int), None, "ids.npy holds no prompts: int64 [0, 3]"),
    (np.ones((1, 0), int), None, "ids.npy holds no prompts: int64 [1, 0]"),
    (np.ones((1, SLOTS + 1), int), None, "prompt 0 has 25 tokens, the model has room for 1 to 24: leave out padding"),
    (np.array([[5, 1, -1]]), None, "prompt 0 holds -1: ids are 0 or more"),
    (np.ones((1, 3), int), HOLES, "mask.npy: row 0 has ones behind zeros"),
    (np.ones((1, 3), int), HOLES[:, :2], "mask.npy holds int64 [1, 2]: expected the ids' mask, ones and zeros [1, 3]"),
    (np.ones((1, 3), int), 0 * HOLES, "mask.npy: row 0 is all padding"),
    (WIDE, None, "ONNX Runtime failed in the text encoder of"),
]


@pytest.mark.parametrize(("array", "mask", "message"), WRONG, ids=[message for *_, message in WRONG])
@pytest.mark.parametrize("build", ["release", "sanitized"])
def test_arrays_that_do_not_fit_are_refused(
    request: pytest.FixtureRequest, words_bundle: Path, tmp_path: Path, build: str, array: np.ndarray,
    mask: np.ndarray | None, message: str,
) -> None:  # fmt: skip
    program = request.getfixturevalue(build).program("arforge-run")
    np.save(tmp_path / "ids.npy", array)
    words = ["--prompt-ids", tmp_path / "ids.npy", "--tokens", tmp_path / "t.npy"]
    if mask is not None:
        np.save(tmp_path / "mask.npy", mask)
        words += ["--prompt-ids-mask", tmp_path / "mask.npy"]
    done = run(program, words_bundle, *words)
    assert done.returncode == (ENGINE_ERROR if "ONNX" in message else REQUEST_ERROR), done.stderr[-3000:]
    assert message in done.stderr
    assert not (tmp_path / "t.npy").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt-ids", "i.npy", "--class", 1), "say what to draw by one of --class and --prompt-ids"),
        (("--prompt-ids", "i.npy", "--features", "f.npy"), "say what to draw by one of --features and --prompt-ids"),
        (("--features", "f.npy", "--prompt-ids-mask", "m.npy"), "--prompt-ids-mask goes with --prompt-ids"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    release: Any, words_bundle: Path, words: tuple[Any, ...], message: str
) -> None:
    done = run(release.program("arforge-run"), words_bundle, *words, "--tokens", "x.npy")
    assert (done.returncode, message in done.stderr) == (USAGE_ERROR, True), done.stderr
