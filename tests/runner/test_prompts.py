"""Prompts in the runner: the authors' tokens, each picture alone and in company, and what is prefilled when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import TextDecoder, next_token, zipar
from tiny import TEXT_CONFIG
from torch import Tensor

from arforge.runner import RequestError, Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.conditions import ConditionGraph, Prompt, class_conditions, prompt_slots, sample_features
from arforge.runner.errors import NumericsError
from arforge.runner.prefill import KEPT
from arforge.runner.request import Request

LENGTHS = (7, 120, 1, 33)


def captions(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [0.5 * random.standard_normal((length, TEXT_CONFIG.caption_dim), np.float32) for length in lengths]


@pytest.fixture(scope="module")
def text_decoder(text_weights: dict[str, Tensor]) -> TextDecoder:
    return TextDecoder(text_weights, heads=TEXT_CONFIG.n_head, grid=TEXT_CONFIG.grid)


class Counting(OnnxRuntimeEngine):
    """Notes the rows and the width of each step."""

    steps: list[tuple[int, int]]

    def run(self, width: int, queries: int = 0) -> None:
        self.steps.append((len(self.buffers(width, queries).tokens), width))
        super().run(width, queries)


@pytest.fixture
def counting(text_bundle: Path) -> Iterator[tuple[Runner, Counting]]:
    bundle = replace(open_bundle(text_bundle), image_tokenizer=None)
    engine = Counting(bundle, "fp32", threads=1)
    engine.steps = []
    with Runner(bundle, engine) as runner:
        yield runner, engine


@pytest.mark.parametrize("guidance", [7.5, 2.0, 1.0])
@pytest.mark.parametrize(
    "schedule", ["ntp", "zipar:2", "zipar:4", "zipar:7", "ntp,cfg-interval=20", "zipar:3,cfg-interval=9"]
)
def test_tokens_are_the_authors(text_runner: Runner, text_decoder: TextDecoder, schedule: str, guidance: float) -> None:
    name, _, interval = schedule.partition(",cfg-interval=")
    ending = int(interval or -1)
    kind, _, window = name.partition(":")
    given = captions()
    if kind == "ntp":
        wanted = next_token(text_decoder, given, guidance, ending)
    else:
        wanted = zipar(text_decoder, given, int(window), guidance, ending)
    found = text_runner.generate(features=given, schedule=schedule, guidance=guidance, greedy=True)
    np.testing.assert_array_equal(found.tokens, wanted)
    assert len(np.unique(wanted)) > 10


def test_a_picture_does_not_depend_on_its_company(text_runner: Runner) -> None:
    given, seeds = captions((5, 60, 5, 2, 118)), [3, 1, 4, 1, 5]
    settings: dict[str, Any] = {"schedule": "zipar:4", "top_k": 20, "temperature": 1.1}
    together = text_runner.generate(features=given, seeds=seeds, **settings)
    for batch in (1, 2):
        parted = text_runner.generate(features=given, seeds=seeds, batch=batch, **settings)
        np.testing.assert_array_equal(parted.tokens, together.tokens)
    backwards = text_runner.generate(features=given[::-1], seeds=seeds[::-1], **settings)
    np.testing.assert_array_equal(backwards.tokens[::-1], together.tokens)
    np.testing.assert_array_equal(backwards.images[::-1], together.images)
    for index, caption in enumerate(given):
        alone = text_runner.generate(features=[caption], seeds=seeds[index : index + 1], **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[index])


def test_requests_of_different_guidance_share_a_batch(text_runner: Runner) -> None:
    given, scales = captions((4, 9, 30)), [1.0, 7.5, 2.0]
    mixed = text_runner.generate(features=given, guidance=scales, seeds=[1, 2, 3])
    for index, scale in enumerate(scales):
        alone = text_runner.generate(features=[given[index]], guidance=scale, seeds=[index + 1])
        np.testing.assert_array_equal(alone.tokens[0], mixed.tokens[index])


def test_each_prompt_is_prefilled_once_and_the_unconditional_kept(counting: tuple[Runner, Counting]) -> None:
    runner, engine = counting
    first, second = captions((9, 31))
    runner.generate(features=[first, second, first, first], guidance=2.0, batch=4)
    prefills = [(1, 8), (1, 30), (1, 8), (1, 30)]  # the prompts, then what stands for none of either length
    assert engine.steps == [*prefills, *[(8, 1)] * 64]
    engine.steps.clear()
    (other,) = captions((9,), seed=1)
    runner.generate(features=[other], guidance=2.0)
    assert engine.steps == [(1, 8), *[(2, 1)] * 64]
    engine.steps.clear()
    runner.generate(features=[other], guidance=1.0)  # prompts of earlier requests are not kept
    assert engine.steps == [(1, 8), *[(1, 1)] * 64]


def test_a_prompt_of_several_batches_is_prefilled_once(counting: tuple[Runner, Counting]) -> None:
    runner, engine = counting
    (caption,) = captions((9,))
    result = runner.generate(features=[caption] * 5, guidance=1.0, batch=2, greedy=True)
    assert [step for step in engine.steps if step[1] > 1] == [(1, 8)]
    assert (result.tokens == result.tokens[0]).all()
    assert result.condition_seconds > 0


def test_few_unconditional_prompts_are_kept(counting: tuple[Runner, Counting]) -> None:
    runner, engine = counting
    for length in range(2, KEPT + 4):
        runner.generate(features=captions((length,)), guidance=2.0)
    engine.steps.clear()
    runner.generate(features=captions((KEPT + 3,), seed=2), guidance=2.0)
    runner.generate(features=captions((2,), seed=2), guidance=2.0)
    assert [step for step in engine.steps if step[0] == 1] == [(1, KEPT + 2), (1, 1), (1, 1)]


def test_long_prompts_pass_in_chunks_as_wide_as_the_rotary_table(counting: tuple[Runner, Counting]) -> None:
    runner, engine = counting
    runner.generate(features=captions((120,)), guidance=1.0)
    assert [step for step in engine.steps if step[1] > 1] == [(1, 65), (1, 54)]


def test_an_engine_of_some_widths_prefills_padded(text_bundle: Path, text_runner: Runner) -> None:
    bundle = open_bundle(text_bundle)
    wanted = text_runner.generate(features=captions(), greedy=True, schedule="zipar:4")
    with Runner(bundle, OnnxRuntimeEngine(bundle, "fp32", threads=1, widths=(1, 2, 4, 7))) as runner:
        found = runner.generate(features=captions(), greedy=True, schedule="zipar:4")
    np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_slots_grow_in_blocks_that_leave_sums_alone(text_bundle: Path, bundle: Path) -> None:
    model = open_bundle(text_bundle).model
    assert [prompt_slots(model, longest) for longest in (0, 1, 119)] == [0, 119, 119]
    wide = replace(model, condition=replace(model.condition, slots=1000))
    assert [prompt_slots(wide, longest) for longest in (0, 1, 128, 129, 999)] == [0, 128, 128, 256, 1024]
    assert prompt_slots(open_bundle(bundle).model, 0) == 0


def test_the_condition_graph_is_the_authors_projection(text_bundle: Path, text_weights: dict[str, Tensor]) -> None:
    import torch

    (caption,) = captions((11,))
    graph = ConditionGraph(open_bundle(text_bundle)).of_features
    conditions = graph([caption, caption])
    given, none = conditions.conditional[0], conditions.unconditional[0]
    first, second = (text_weights[f"cls_embedding.cap_proj.fc{i}.weight"] for i in (1, 2))
    for rows, features in ((given.rows, caption), (none.rows, text_weights["cls_embedding.uncond_embedding"][-11:])):
        wide = torch.nn.functional.gelu(torch.as_tensor(features) @ first.T, approximate="tanh")
        np.testing.assert_allclose(rows, wide @ second.T, atol=2e-5)
    assert conditions.conditional[1] is given
    assert (given.token, given.before, given.keep, none.keep) == (TEXT_CONFIG.vocab_size, 10, False, True)
    zero = graph([np.zeros((3, TEXT_CONFIG.caption_dim), np.float32)]).conditional[0]
    assert not zero.rows.any()


def test_prompts_are_equal_where_a_step_cannot_tell_them_apart(bundle: Path) -> None:
    rows = np.ones((2, 4), np.float32)
    assert Prompt(5, rows) == Prompt(5, rows.copy(), keep=True)
    assert Prompt(5, rows) != Prompt(6, rows)
    assert Prompt(5, rows) != Prompt(5, rows[:1])
    classes = class_conditions(open_bundle(bundle).model, [3, 3, 4])
    assert len({*classes.rows(guided=True)}) == 3
    assert classes.longest == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [1]}, "this llamagen-t2i model takes prompts, not classes: say in words what to draw"),
        ({}, "nothing is asked for: give one of classes, prompts, features, ids"),
        ({"features": []}, "no features given"),
        ({"features": captions(), "classes": [1]}, "classes and features are given"),
        ({"prompts": ["a heart"]}, r"has no text encoder: export it with --text-encoder FOLDER, or give features"),
        ({"ids": [np.array([5, 1])]}, r"has no text encoder: export it with --text-encoder FOLDER, or give features"),
        ({"features": captions((121,))}, "121"),
        ({"features": [np.zeros((0, 48), np.float32)]}, "prompt 0"),
        ({"features": [np.zeros((3, 47), np.float32)]}, "47"),
        ({"features": [np.zeros((3, 48), np.int64)]}, "int64"),
        ({"features": [np.full((3, 48), np.nan, np.float32)]}, "prompt 0"),
        ({"features": captions((3, 4)), "seeds": [1]}, "1 seeds for 2 images"),
    ],
)
def test_what_a_model_of_prompts_does_not_take_is_refused(
    text_runner: Runner, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        text_runner.generate(**arguments)


def test_a_model_of_classes_takes_no_prompts(runner: Runner) -> None:
    for by, values in (("prompts", ["a heart"]), ("features", captions()), ("ids", [np.array([1])])):
        with pytest.raises(RequestError, match=f"this llamagen model takes classes, not {by}"):
            runner.generate(Request(**{by: values}))


def test_a_prompt_of_enormous_features_is_named_and_leaves_the_runner_sound(text_runner: Runner) -> None:
    given = captions((6,))
    before = text_runner.generate(features=given, seeds=[2])
    with pytest.raises(NumericsError, match="non-finite"):
        text_runner.generate(features=[np.full((4, 48), 3e38, np.float32)])
    after = text_runner.generate(features=given, seeds=[2])
    np.testing.assert_array_equal(after.tokens, before.tokens)


def test_sample_features_fit(text_bundle: Path) -> None:
    found = sample_features(open_bundle(text_bundle).model, 5)
    assert len({len(one) for one in found}) == 5
    assert all(one.shape[1] == 48 and one.dtype == np.float32 for one in found)
