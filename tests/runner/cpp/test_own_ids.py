"""Models that read ids of a vocabulary of their own: the C++ runner gives Python's tokens and refuses in its words."""

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
from cpp_abi import STATUS, Failure
from tiny_ids import CONDITION, VOCABULARY, prompt_of

from arforge.engines import onnxruntime
from arforge.runner import Runner, open_bundle
from arforge.runner.errors import NumericsError, RequestError

SEEDS = [9, 2**64 - 1, 6, 0]
START = np.array(CONDITION.suffix[-CONDITION.start :])
LENGTHS = (6, 30, 12, 140)
SCHEDULES = ["ntp", "zipar:4", "zipar:2", "zipar:9", "zipar:3,cfg-interval=20"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance": 7.5, "greedy": True},
    {"guidance": 2.0, "temperature": 0.7, "top_k": 9, "unconditional": "image"},
    {"guidance": 1.0, "temperature": 1.3, "top_p": 0.8},
    {"unconditional": "negative", "prefill": "bidirectional"},
    {"guidance": 1.0, "greedy": True, "prefill": "bidirectional"},
]


@pytest.fixture
def ours(library: Any, ids_bundle: Path) -> Iterator[cpp_abi.Runner]:
    opened = cpp_abi.Runner(library, ids_bundle, threads=1)
    yield opened
    opened.close()


def of_lengths(*lengths: int) -> list[np.ndarray]:
    return [prompt_of(length, seed) for seed, length in enumerate(lengths)]


def compare(ours: cpp_abi.Runner, theirs: Runner, ids: list[np.ndarray], **settings: Any) -> np.ndarray:
    expected = theirs.generate(ids=ids, **settings)
    found = ours.generate(ids=ids, **settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.steps == expected.steps
    assert found.condition_seconds > 0
    return found.tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_and_images_are_pythons(ours: cpp_abi.Runner, ids_runner: Runner, schedule: str) -> None:
    ids = of_lengths(*LENGTHS)
    drawn = [compare(ours, ids_runner, ids, seeds=SEEDS, schedule=schedule, **each) for each in SETTINGS]
    for index in range(1, len(drawn)):
        assert not (drawn[0] == drawn[index]).all()
    compare(ours, ids_runner, ids, schedule=schedule, batch=3, guidance=[7.5, 1.0, 2.0, 1.0])


@pytest.mark.parametrize("prefill", ["causal", "bidirectional"])
@pytest.mark.parametrize("unconditional", ["padded", "image", "negative"])
def test_what_unconditional_rows_see_is_pythons(
    ours: cpp_abi.Runner, ids_runner: Runner, unconditional: str, prefill: str
) -> None:
    settings = {"schedule": "zipar:4", "unconditional": unconditional, "prefill": prefill, "greedy": True}
    compare(ours, ids_runner, of_lengths(*LENGTHS), **settings)


def test_every_kind_of_prompts_gives_other_tokens(ours: cpp_abi.Runner) -> None:
    """So that no setting could do nothing."""
    kinds: list[dict[str, Any]] = [
        *({"unconditional": kind, "prefill": prefill} for kind in ("padded", "image", "negative")
          for prefill in ("causal", "bidirectional")),
        {"negative_ids": prompt_of(40, 3)},
    ]  # fmt: skip
    drawn = {ours.generate(ids=of_lengths(30), schedule="zipar:4", **each).tokens.tobytes() for each in kinds}
    assert len(drawn) == len(kinds)
    padded = ours.generate(ids=of_lengths(30), schedule="zipar:4", unconditional="padded").tokens
    np.testing.assert_array_equal(ours.generate(ids=of_lengths(30), schedule="zipar:4").tokens, padded)


@pytest.mark.parametrize("negatives", [prompt_of(150), [prompt_of(7)], of_lengths(7, 40, 7, 130)], ids=len)
def test_negative_prompts_are_pythons(ours: cpp_abi.Runner, ids_runner: Runner, negatives: Any) -> None:
    for more in ({}, {"unconditional": "negative", "batch": 3}, {"prefill": "bidirectional"}):
        compare(ours, ids_runner, of_lengths(*LENGTHS), schedule="zipar:4", negative_ids=negatives, **more)


@pytest.mark.parametrize(
    "lengths",
    [(5,), (160,), (6, 5), (160, 5, 60), (9, 9, 9, 9), (128, 129, 130), (131, 132, 133), tuple(range(5, 17))],
    ids=str,
)
@pytest.mark.parametrize("prefill", ["causal", "bidirectional"])
def test_prompts_of_all_lengths_are_pythons(
    ours: cpp_abi.Runner, ids_runner: Runner, lengths: tuple[int, ...], prefill: str
) -> None:
    """Of more than 128 tokens also, which pass in two parts, or at once where they see each other."""
    compare(ours, ids_runner, of_lengths(*lengths), schedule="zipar:4", prefill=prefill)
    compare(ours, ids_runner, of_lengths(*lengths), schedule="zipar:4", batch=2, guidance=1.0, prefill=prefill)


def test_what_begins_the_image_is_added_where_it_is_missing(ours: cpp_abi.Runner, ids_runner: Runner) -> None:
    whole = of_lengths(20)
    expected = compare(ours, ids_runner, whole, schedule="zipar:4", negative_ids=prompt_of(9))
    bare = [one[: -CONDITION.start] for one in whole]
    found = compare(ours, ids_runner, bare, schedule="zipar:4", negative_ids=prompt_of(9)[: -CONDITION.start])
    np.testing.assert_array_equal(found, expected)
    for short in ([np.array([7])], [START], [START[1:]]):
        compare(ours, ids_runner, short, schedule="zipar:4")


@pytest.mark.parametrize("prefill", ["causal", "bidirectional"])
def test_an_image_alone_is_what_it_is_in_a_batch(ours: cpp_abi.Runner, prefill: str) -> None:
    """And what it is in another runner, at another place, beside the same prompt."""
    given = [*of_lengths(6, 30, 12, 110), prompt_of(30, 1)]
    settings = {"schedule": "zipar:4", "prefill": prefill}
    together = ours.generate(ids=given, seeds=[*SEEDS, 5], **settings).tokens
    for image, (one, seed) in enumerate(zip(given, [*SEEDS, 5], strict=True)):
        np.testing.assert_array_equal(ours.generate(ids=[one], seeds=[seed], **settings).tokens[0], together[image])
    back = ours.generate(ids=given[::-1], seeds=[5, *SEEDS[::-1]], batch=2, **settings).tokens
    np.testing.assert_array_equal(back[::-1], together)


@pytest.mark.parametrize("widths", [(1, 3, 5), (2,), (64,)])
def test_padded_and_narrowed_steps_give_the_same_tokens(
    library: Any, ids_bundle: Path, ids_runner: Runner, tmp_path: Path, widths: tuple[int, ...]
) -> None:
    """Widths are for steps: prompts pass as they are."""
    root = Path(shutil.copytree(ids_bundle, tmp_path / "widths.bundle"))
    onnxruntime.build(root, widths=widths)
    ours = cpp_abi.Runner(library, root, threads=1)
    for schedule in ("ntp", "zipar:4") if widths != (2,) else ("ntp",):
        for prefill in ("causal", "bidirectional"):
            compare(ours, ids_runner, of_lengths(*LENGTHS), schedule=schedule, prefill=prefill)
    ours.close()


def test_facts_say_what_a_prompt_may_be(
    library: Any, ours: cpp_abi.Runner, bundle: Path, text_bundle: Path, words_bundle: Path
) -> None:
    found = [ours.facts()]
    for root in (bundle, text_bundle, words_bundle):
        other = cpp_abi.Runner(library, root, threads=1)
        found.append(other.facts())
        other.close()
    assert [(one.classes, one.feature_slots, one.id_slots, one.id_vocabulary) for one in found] == [
        (0, 0, CONDITION.slots, VOCABULARY),
        (10, 0, 0, 0),
        (0, 120, 0, 0),
        (0, 24, 24, 0),
    ]


PROMPTS = of_lengths(6, 30)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ids": of_lengths(6, 161)}, "the ids: prompt 1 has 161 tokens, the model has room for 1 to 160: leave out"),
    ({"ids": [prompt_of(161)[:158]]}, "the ids: prompt 0 has 161 tokens, the model has room for 1 to 160"),
    ({"ids": [np.array([0]), np.ones(0, int)]}, "the ids: prompt 1 has 0 tokens, the model has room for 1 to 160"),
    ({"ids": [np.array([0, -1])]}, "the ids: prompt 0 holds -1: ids are 0 or more"),
    ({"ids": [PROMPTS[0], np.array([0, 48])]}, "the ids: prompt 1 holds 48, the model's ids are 0 to 47"),
    ({"ids": [np.array([2**62])]}, "the ids: prompt 0 holds 4611686018427387904, the model's ids are 0 to 47"),
    ({"unconditional": "none"}, "unconditional 'none' is unknown: use padded or image or negative"),
    ({"prefill": "both"}, "prefill 'both' is unknown: use causal or bidirectional"),
    ({"negative_ids": of_lengths(6, 7, 8)}, "3 negative prompts for 2 images: give one for all, or one an image"),
    ({"negative_ids": np.array([48])}, "prompt 0 holds 48, the model's ids are 0 to 47"),
    ({"negative_ids": prompt_of(161)}, "prompt 0 has 161 tokens, the model has room for 1 to 160"),
    (
        {"negative_ids": prompt_of(6), "unconditional": "image"},
        "a negative prompt is given, and unconditional 'image': leave one of them out",
    ),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_the_model_does_not_take_is_refused_in_pythons_words(
    ours: cpp_abi.Runner, ids_runner: Runner, asked: dict[str, Any], message: str
) -> None:
    given = {"ids": PROMPTS, **asked}
    with pytest.raises(Failure) as refused:
        ours.generate(**given)
    assert refused.value.status == STATUS["request"]
    assert message in refused.value.message
    with pytest.raises(RequestError) as expected:
        ids_runner.generate(**given)
    assert str(expected.value) == refused.value.message
    if "negative_ids" in asked or "unconditional" in asked:
        compare(ours, ids_runner, schedule="zipar:4", guidance=1.0, **given)  # which nobody sees then


def edited(source: Path, root: Path, model: dict[str, Any] | None = None, **condition: Any) -> Path:
    """A copy whose manifest says otherwise."""
    shutil.copytree(source, root)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["model"].update(model or {})
    manifest["model"]["condition"].update(condition)
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_an_image_that_begins_with_one_id_is_pythons(library: Any, ids_bundle: Path, tmp_path: Path) -> None:
    """Unconditional rows have no prompt slots then."""
    root = edited(ids_bundle, tmp_path / "one.bundle", start=1)
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        for unconditional in ("image", "padded"):
            for prefill in ("causal", "bidirectional"):
                settings = {"schedule": "zipar:4", "unconditional": unconditional, "prefill": prefill}
                compare(ours, theirs, [np.array([7]), *of_lengths(*LENGTHS)], **settings)
    ours.close()


def test_positions_in_sequence_without_row_ends_are_pythons(library: Any, ids_bundle: Path, tmp_path: Path) -> None:
    root = edited(ids_bundle, tmp_path / "plain.bundle", {"specials": [], "row_end": None})
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        for schedule in ("ntp,cfg-interval=20", "zipar:2", "zipar:3,first-row=windowed,seed=nearest,holes=masked"):
            compare(ours, theirs, of_lengths(*LENGTHS), schedule=schedule)
    with pytest.raises(Failure, match="schedule ntp needs 1 special tokens, the model was trained with 0") as refused:
        ours.generate(ids=PROMPTS, schedule="ntp")  # as it is stored
    ours.close()
    assert refused.value.status == STATUS["schedule"]


@pytest.mark.parametrize(
    ("condition", "asked", "message"),
    [
        ({"padding": None, "unconditional": "image"}, {"unconditional": "padded"}, "this model has no padding token"),
        ({"negative": []}, {"unconditional": "negative"}, "unconditional rows see a negative prompt, and the bundle"),
        ({"negative": [], "unconditional": "negative"}, {}, "unconditional rows see a negative prompt, and the bundle"),
    ],
)
def test_a_bundle_without_that_prompt_says_so(
    library: Any, ids_bundle: Path, tmp_path: Path, condition: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    root = edited(ids_bundle, tmp_path / "without.bundle", **condition)
    ours = cpp_abi.Runner(library, root, threads=1)
    with Runner.open(root, threads=1) as theirs:
        for error, runner in ((RequestError, theirs), (Failure, ours)):
            with pytest.raises(error, match=message):
                runner.generate(ids=PROMPTS, **asked)
        compare(ours, theirs, PROMPTS, schedule="zipar:4", unconditional="image")
        compare(ours, theirs, PROMPTS, schedule="zipar:4", **asked, guidance=1.0)
    ours.close()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("ids", {"classes": [1]}),
        ("ids", {"features": [np.zeros((2, 32), np.float32)]}),
        ("classes", {"classes": [1], "unconditional": "image"}),
        ("classes", {"classes": [1], "prefill": "causal"}),
        ("classes", {"classes": [1], "negative_ids": np.array([1])}),
        ("features", {"features": [np.zeros((2, 48), np.float32)], "negative_ids": np.array([1])}),
        ("features", {"features": [np.zeros((2, 48), np.float32)], "prefill": "bidirectional"}),
    ],
)
def test_requests_are_for_models_that_take_them(
    library: Any, request: pytest.FixtureRequest, name: str, asked: dict[str, Any]
) -> None:
    bundle, runner = {
        "ids": ("ids_bundle", "ids_runner"), "classes": ("bundle", "runner"), "features": ("text_bundle", "text_runner")
    }[name]  # fmt: skip
    ours = cpp_abi.Runner(library, request.getfixturevalue(bundle), threads=1)
    with pytest.raises(RequestError) as expected:
        request.getfixturevalue(runner).generate(**asked)
    with pytest.raises(Failure) as refused:
        ours.generate(**asked)
    ours.close()
    assert refused.value.status == STATUS["request"]
    assert refused.value.message.startswith(str(expected.value))


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"ids": PROMPTS, "classes": [1]}, "request", "classes and ids are given: give one of classes, features, ids"),
        ({}, "request", "no ids given: name at least one"),
        ({"ids": PROMPTS, "lengths": None}, "argument", "lengths is NULL"),
        ({"ids": PROMPTS, "negatives": 1}, "argument", "negative_ids is NULL"),
        ({"ids": PROMPTS, "negative_ids": prompt_of(6), "negatives": 0}, "request", "0 negative prompts for 2 images"),
        (
            {"ids": PROMPTS, "negative_ids": prompt_of(6), "negative_lengths": None},
            "argument",
            "negative_lengths is NULL",
        ),
        ({"ids": PROMPTS, "schedule": "zipar:1"}, "schedule", "window 1 does not fit a grid of 8x8 whose rows end in"),
        ({"ids": PROMPTS, "schedule": "zipar:10"}, "schedule", "use zipar:2 to zipar:9"),
        (
            {"ids": PROMPTS, "schedule": "zipar:3,seed=nearest"},
            "schedule",
            "'zipar:3,seed=nearest': this model's rows end in a token, which leaves nothing for seed to decide: leave",
        ),
        ({"ids": PROMPTS, "schedule": "par:4"}, "schedule", "this model in raster order"),
        ({"ids": PROMPTS, "known": np.full((8, 9), -1)}, "schedule", "cannot keep cells or go beyond"),
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
    library: Any, ids_bundle: Path, tmp_path: Path, graph: str
) -> None:
    root = Path(shutil.copytree(ids_bundle, tmp_path / "damaged.bundle"))
    weights = root / next(each.weights for each in open_bundle(root).graphs if each.name == graph)
    sound = weights.read_bytes()
    weights.write_bytes(np.full(len(sound) // 4, np.nan, np.float32).tobytes().ljust(len(sound), b"\0"))
    ours = cpp_abi.Runner(library, root, threads=1)
    for _ in range(2):
        with pytest.raises(Failure) as refused:
            ours.generate(ids=of_lengths(12), schedule="ntp")
        assert refused.value.status == STATUS["numerics"]
    ours.close()
    with Runner.open(root, threads=1) as theirs, pytest.raises(NumericsError) as expected:
        theirs.generate(ids=of_lengths(12), schedule="ntp")
    assert refused.value.message == re.sub(", first seen[^;]*", "", str(expected.value))
    assert "the prompt of image 0: the logits are non-finite in its first 11 tokens of 12" in refused.value.message


def test_a_cancelled_request_leaves_the_runner_usable(ours: cpp_abi.Runner, ids_runner: Runner) -> None:
    with pytest.raises(Failure, match="cancelled after 3 of 58 steps"):
        ours.generate(ids=of_lengths(*LENGTHS), schedule="zipar:4", batch=2, progress=lambda done, _: done == 3)
    compare(ours, ids_runner, of_lengths(*LENGTHS), schedule="zipar:4")
