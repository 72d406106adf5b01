"""NaN and infinity are found in the step in which they appear, with image and layer, and do not stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arforge.export.sampler import sample
from arforge.runner import numerics, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.conditions import class_conditions
from arforge.runner.decoding import Drawing, decoding_of
from arforge.runner.errors import NumericsError
from arforge.runner.numerics import check_step
from arforge.runner.plan import NO_PREFIXES, make_plan
from arforge.runner.randomness import Randomness

ONE, OFF = torch.ones(1), torch.zeros(1, dtype=torch.int64)
Poison = Callable[[OnnxRuntimeEngine, int], None]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_logit_that_is_not_finite_gives_no_token(number: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 50)
    uniforms, degrees = torch.rand(2, 3), torch.full((1,), temperature)
    sound, _ = sample(logits, uniforms, 2 * ONE, degrees, OFF, ONE)
    logits[1, 2, 7] = number  # image 1's conditional row
    found, _ = sample(logits, uniforms, 2 * ONE, degrees, OFF, ONE)
    assert numerics.NO_TOKEN == -1
    assert found[1, 2] == -1
    sound[1, 2] = -1
    assert torch.equal(found, sound)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[OnnxRuntimeEngine]:
    opened = OnnxRuntimeEngine(open_bundle(bundle), "fp32", threads=1)
    yield opened
    opened.close()


def decode(engine: OnnxRuntimeEngine, bundle: Path, poison: Poison) -> np.ndarray:
    """The runner's loop on two guided images; `poison` is called before every step."""
    opened = open_bundle(bundle)
    plan = make_plan(opened.schedule("zipar:4"), None)
    prompts = class_conditions(opened.model, [1, 2]).rows(guided=True)
    engine.prepare(2, 4, plan.slots, plan.schedule.zero_slots)
    engine.settings.temperature[:] = 0
    drawing = Drawing(Randomness.of(np.zeros(2, np.uint64), plan.schedule.cells), np.full(2, 2.0))
    decoding = decoding_of(plan, opened.model, prompts, NO_PREFIXES, drawing)
    while (shape := decoding.shape) is not None:
        poison(engine, decoding.done)
        buffers = engine.buffers(*shape)
        decoding.fill(buffers)
        engine.run(*shape)
        check_step(engine, opened.model, plan, decoding, buffers, first_image=10)
        decoding.store(buffers)
    return decoding.known[:2, : plan.schedule.cells].copy()


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "layer"), [("key", 1), ("value", 0)])
def test_the_step_the_image_and_the_layer_are_named_and_the_next_request_is_sound(
    engine: OnnxRuntimeEngine, bundle: Path, number: float, kind: str, layer: int
) -> None:
    expected = decode(engine, bundle, lambda engine, index: None)

    def poison(engine: OnnxRuntimeEngine, index: int) -> None:
        if index == 7:  # in the slot of the class token, which all see, of the second image
            engine.cache(f"{kind}_cache_{layer}")[1, 0, 0, 0] = number

    message = rf"^step 7 of \d+, image 11: the logits are non-finite, first seen in the {kind}s of layer {layer}; "
    with pytest.raises(NumericsError, match=message + "check the weights"):
        decode(engine, bundle, poison)
    np.testing.assert_array_equal(decode(engine, bundle, lambda engine, index: None), expected)


def test_tokens_that_the_model_does_not_have_are_no_tokens(
    engine: OnnxRuntimeEngine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run

    def other(width: int, queries: int = 0) -> None:
        run(width, queries)
        engine.buffers(width, queries).next_tokens[0] = 32

    monkeypatch.setattr(engine, "run", other)
    with pytest.raises(NumericsError, match=r"step 0 of \d+, image 10: the graph gives tokens outside 0\.\.31: export"):
        decode(engine, bundle, lambda engine, index: None)
