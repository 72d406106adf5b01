"""What a calibration generates, and what its taps see of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import Tensor

from arforge.calibration.layers import activations, find_layers
from arforge.calibration.requests import Requests, encoded, generate, held_out, spread
from arforge.calibration.taps import Arrays, TappedEngine
from arforge.engines import onnxruntime
from arforge.runner import Bundle, Runner, ScheduleError, open_bundle
from arforge.runner.conditions import sample_subjects
from arforge.runner.errors import CalibrationError
from arforge.runner.request import Subjects
from arforge.runner.text.encoder import TextEncoder

SCHEDULES = ("ntp", "zipar:2")


def classes(*labels: int) -> Subjects:
    return Subjects("classes", labels)


def quiet(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


def tap(bundle: Bundle, requests: Requests) -> tuple[list[Arrays], dict[str, NDArray[np.int64]]]:
    """What passes into every layer, step by step, and the tokens."""
    graph = onnx.load(bundle.graph("step", "fp32"), load_external_data=False).graph
    seen: list[Arrays] = []

    def keep(arrays: Arrays) -> None:
        seen.append({name: array.copy() for name, array in arrays.items()})

    engine = TappedEngine(bundle, list(activations(find_layers(graph))), keep, threads=1)
    return seen, dict(generate(bundle, engine, requests, "test", quiet))


def test_classes_are_spread_and_seeds_counted(bundle: Path) -> None:
    requests = spread(open_bundle(bundle), [], 4, seed=7, guidance=None, batch=2)
    assert requests == Requests(("ntp", "zipar:4", "zipar:2"), classes(0, 2, 5, 7), (7, 8, 9, 10), 2.0, 2)
    more = spread(open_bundle(bundle), ["zipar:4", "ntp", "zipar:4"], 12, seed=0, guidance=3.0, batch=2)
    assert more.schedules == ("zipar:4", "ntp")
    assert more.subjects == classes(*range(10), 0, 1)
    assert more.guidance == 3.0


@pytest.mark.parametrize("samples", [1, 4, 10, 12])
def test_held_out_requests_share_no_seed_and_no_pair(bundle: Path, samples: int) -> None:
    requests = spread(open_bundle(bundle), [], samples, seed=3, guidance=None, batch=2)
    other = held_out(requests, 5, open_bundle(bundle).model)
    assert other.schedules == requests.schedules
    assert other.seeds == tuple(range(3 + samples, 8 + samples))
    assert all(0 <= label < 10 for label in other.subjects.values)
    assert other.subjects.values != requests.subjects.values[:5]


def test_a_model_of_prompts_needs_real_ones(text_bundle: Path) -> None:
    with pytest.raises(CalibrationError, match=r"takes prompts, and from made-up ones .*: give some .*--prompt, --p"):
        spread(open_bundle(text_bundle), [], 4, seed=0, guidance=None, batch=2)


@pytest.mark.parametrize(
    ("samples", "given", "turned"),
    [(2, "abcde", "cdeab"), (5, "abcde", "cdeab"), (7, "abcde", "cdeab"), (4, "abcd", "cdab"), (3, "a", "a")],
)
def test_held_out_prompts_are_others_or_have_other_seeds(
    text_bundle: Path, samples: int, given: str, turned: str
) -> None:
    opened, subjects = open_bundle(text_bundle), Subjects("prompts", tuple(given), {"captions": "raw"})
    requests = spread(opened, ["ntp"], samples, 3, None, 2, subjects)
    assert requests.subjects == subjects
    other = held_out(requests, 5, opened.model)
    assert other.subjects == Subjects("prompts", tuple(turned), {"captions": "raw"})
    assert other.seeds == tuple(range(3 + samples, 8 + samples))


def test_a_record_names_what_was_drawn(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    words = Subjects("prompts", ("a cat", "a dog", "a cow"), {"captions": "raw", "truncate": False})
    record = spread(opened, ["ntp"], 2, 0, 3.0, 2, words).to_json()
    assert record == {
        "schedules": ("ntp",),
        "prompts": ("a cat", "a dog"),
        "captions": "raw",
        "seeds": (0, 1),
        "guidance": 3.0,
        "batch": 2,
    }
    features = sample_subjects(opened.model, 4)
    records = [spread(opened, ["ntp"], count, 0, 3.0, 2, features).to_json() for count in (2, 2, 3)]
    assert records[0] == records[1]
    assert records[0]["features"] == 2
    assert records[0]["features_sha256"] != records[2]["features_sha256"]


def test_prompts_are_encoded_once(text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(text_bundle)
    features, calls = sample_subjects(opened.model, 3).values, []

    def encode(_: object, prompts: list[str], *, cleaning: bool, truncate: bool) -> list[NDArray[np.float32]]:
        calls.append((prompts, cleaning, truncate))
        return list(features)

    monkeypatch.setattr(TextEncoder, "features", encode)
    words = Subjects("prompts", ("a cat", "a dog", "a cow"), {"captions": "raw", "truncate": True})
    requests = spread(opened, ["ntp"], 2, 0, 3.0, 2, words)
    found = encoded(opened, requests)
    assert calls == [(["a cat", "a dog", "a cow"], False, True)]
    assert (found.subjects.by, found.seeds) == ("features", requests.seeds)
    for one, wanted in zip(found.subjects.values, features, strict=True):
        np.testing.assert_array_equal(one, wanted)
    assert encoded(opened, found) is found


def test_taps_see_prompts_as_they_pass(text_bundle: Path, text_runner: Runner) -> None:
    opened = open_bundle(text_bundle)
    requests = spread(opened, ["zipar:4"], 2, 0, 2.0, 2, sample_subjects(opened.model, 2))
    seen, tokens = tap(opened, requests)
    subjects = requests.subjects
    expected = text_runner.generate(**subjects.take(range(2)), seeds=requests.seeds, schedule="zipar:4", guidance=2.0)
    assert (tokens["zipar:4"] == expected.tokens).all()
    lengths = [len(one) - 1 for one in subjects.values]
    shapes = [arrays["rms_norm"].shape[:2] for arrays in seen]
    assert shapes[:4] == [(1, lengths[0]), (1, lengths[1]), (1, lengths[0]), (1, lengths[1])]
    assert shapes[4:] == [(4, step.width) for step in opened.schedule("zipar:4").steps]


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_are_refused(bundle: Path, samples: int) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        spread(open_bundle(bundle), [], samples, seed=0, guidance=None, batch=2)


def test_a_schedule_of_another_family_is_refused(arpg_bundle: Path) -> None:
    with pytest.raises(ScheduleError, match="decodes in raster order, this model in random order"):
        spread(open_bundle(arpg_bundle), ["zipar:2"], 4, seed=0, guidance=None, batch=2)


def test_taps_see_each_input_once_and_no_padding(bundle_copy: Path, runner: Runner) -> None:
    """The bundle's engine pads every step to 8 or 16 inputs; what is calibrated is the schedule itself."""
    onnxruntime.build(bundle_copy, widths=[8, 16])
    bundle = open_bundle(bundle_copy)
    requests = spread(bundle, SCHEDULES, 3, seed=0, guidance=2.0, batch=2)
    seen, tokens = tap(bundle, requests)
    for schedule in SCHEDULES:  # tapping changes nothing
        expected = runner.generate(list(requests.subjects.values), requests.seeds, schedule, guidance=2.0)
        assert (tokens[schedule] == expected.tokens).all()
    steps = [step for schedule in SCHEDULES for step in bundle.schedule(schedule).steps]
    assert len(seen) == 2 * len(steps)  # three images are two batches
    rows = 2 * 3  # conditional and unconditional
    for name in seen[0]:
        assert sum(arrays[name].shape[0] * arrays[name].shape[1] for arrays in seen) == rows * sum(
            s.width for s in steps
        )
    assert {arrays["rms_norm"].shape[1] for arrays in seen} == {step.width for step in steps}


def test_taps_see_queries_once_and_no_padding(arpg_bundle: Path) -> None:
    bundle = open_bundle(arpg_bundle)
    seen, _ = tap(bundle, spread(bundle, ["arpg:7"], 2, seed=0, guidance=2.0, batch=2))
    steps = bundle.schedule("arpg:7").steps
    pairs = {tuple(array.shape[:2]) for arrays in seen for array in arrays.values()}
    expected = {(4, step.width) for step in steps} | {(4, len(step.targets)) for step in steps}
    assert pairs == expected


def test_taps_give_the_values_of_their_tensors(bundle: Path, weights: dict[str, Tensor]) -> None:
    """The first norm's output in the first step: that of the class and of the null class."""
    seen, _ = tap(open_bundle(bundle), Requests(("ntp",), classes(4), (0,), guidance=2.0, batch=1))
    table = weights["cls_embedding.embedding_table.weight"].numpy()[[4, 10]]
    normed = table / np.sqrt(np.square(table).mean(-1, keepdims=True) + 1e-5)
    expected = normed * weights["layers.0.attention_norm.weight"].numpy()
    np.testing.assert_allclose(seen[0]["rms_norm"][:, 0], expected, rtol=1e-5, atol=1e-6)


def test_without_guidance_there_are_no_unconditional_rows(bundle: Path) -> None:
    seen, _ = tap(open_bundle(bundle), Requests(("zipar:2",), classes(4, 5), (0, 1), guidance=1.0, batch=2))
    assert {len(arrays["rms_norm"]) for arrays in seen} == {2}
