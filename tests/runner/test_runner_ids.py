"""Models that read ids in the runner, against the module run anew over the whole sequence for every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_ids import CONDITION, CONFIG, PADDING, TinyDecoder, TinyVocabulary, prompt_of, random_modules

from arforge.runner import RequestError, Runner

HEIGHT, WIDTH = CONFIG.grid
END = CONFIG.vocab_size
START = CONDITION.start
PROMPTS = [prompt_of(length, seed=length) for length in (9, 31, 6, 140)]


class Reference:
    """One sequence, a prompt and then the image: what was fed, in which step, and where it stands."""

    def __init__(self, decoder: TinyDecoder, vocabulary: TinyVocabulary, prompt: np.ndarray, together: int) -> None:
        self.decoder, self.together = decoder, together
        self.rows = vocabulary(torch.from_numpy(prompt))[None]
        count = len(prompt)
        self.tokens = [END + 1 + index for index in range(count)]
        self.places = list(range(count))
        self.steps = [-1] * count
        self.before = count - 1

    def feed(self, token: int, place: int, step: int) -> None:
        """`place`: from the prompt's last id on."""
        self.tokens.append(token)
        self.places.append(self.before + place)
        self.steps.append(step)

    def logits(self) -> dict[int, torch.Tensor]:
        """By place in the image: what comes after it."""
        places, steps = torch.tensor(self.places), torch.tensor(self.steps)
        seen = (places[None] <= places[:, None]) & (steps[None] <= steps[:, None])
        prompt = places < self.together
        seen |= prompt[None] & prompt[:, None]
        found, _ = self.decoder(torch.tensor([self.tokens]), places[None], seen[None, None], condition=self.rows)
        return {place - self.before: row for place, row in zip(self.places, found[0], strict=True)}


@torch.no_grad()
def reference(conditional: np.ndarray, unconditional: np.ndarray, delay: int, scale: float, both_ways: bool) -> Any:
    """Greedy tokens [cells]: a row starts when the one above has `delay` cells; its width for next-token."""
    modules = random_modules()
    rows = [
        Reference(*modules, prompt, len(prompt) - START if both_ways else 0) for prompt in (conditional, unconditional)
    ]
    found = np.full((HEIGHT, WIDTH), -1)
    for step in range((HEIGHT - 1) * delay + WIDTH):
        for row in range(HEIGHT):
            column = step - row * delay
            if column == 0 and row:
                for lane in rows:
                    lane.feed(END, row * (WIDTH + 1), step)
        given, none = (row.logits() for row in rows)
        fed = []
        for row in range(HEIGHT):
            column = step - row * delay
            if 0 <= column < WIDTH:
                place = row * (WIDTH + 1) + column
                guided = none[place] + scale * (given[place] - none[place])
                found[row, column] = int(guided.argmax())
                fed.append((int(found[row, column]), place + 1))
        for lane in rows:
            for token, place in fed:
                lane.feed(token, place, step + 1)
    return found.flatten()


def padded(prompt: np.ndarray) -> np.ndarray:
    return np.array([prompt[0], *[PADDING] * (len(prompt) - 1 - START), *prompt[-START:]])


UNCONDITIONAL: dict[str, Any] = {
    "padded": padded,
    "image": lambda prompt: prompt[-START:],
    "negative": lambda _: np.array(CONDITION.negative),
}


@pytest.mark.parametrize(
    ("schedule", "unconditional", "prefill"),
    [
        ("ntp", "padded", "causal"),
        ("ntp", "image", "causal"),
        ("ntp", "negative", "bidirectional"),
        ("zipar:2", "image", "causal"),
        ("zipar:4", "negative", "causal"),
        ("zipar:5", "padded", "bidirectional"),
        ("zipar:8", "image", "bidirectional"),
        ("zipar:9", "padded", "causal"),
    ],
)
def test_tokens_are_those_of_whole_sequences(
    ids_runner: Runner, schedule: str, unconditional: str, prefill: str
) -> None:
    delay = WIDTH if schedule == "ntp" else int(schedule.partition(":")[2]) - 1
    found = ids_runner.generate(
        ids=PROMPTS, schedule=schedule, unconditional=unconditional, prefill=prefill, guidance=3.0, greedy=True
    )
    other = UNCONDITIONAL[unconditional]
    wanted = [reference(one, other(one), delay, 3.0, prefill == "bidirectional") for one in PROMPTS]
    np.testing.assert_array_equal(found.tokens, wanted)
    assert len({tuple(row) for row in found.tokens.tolist()}) == len(PROMPTS)
    assert len(np.unique(found.tokens)) > 10


def test_a_picture_does_not_depend_on_its_company(ids_runner: Runner) -> None:
    settings: dict[str, Any] = {"schedule": "zipar:4", "top_k": 20, "temperature": 1.1}
    seeds = [3, 1, 4, 1]
    together = ids_runner.generate(ids=PROMPTS, seeds=seeds, **settings)
    for index, prompt in enumerate(PROMPTS):
        alone = ids_runner.generate(ids=[prompt], seeds=seeds[index : index + 1], **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[index])
    for batch in (1, 3):
        parted = ids_runner.generate(ids=PROMPTS, seeds=seeds, batch=batch, **settings)
        np.testing.assert_array_equal(parted.tokens, together.tokens)


def test_words_are_the_ids_of_their_template(ids_runner: Runner) -> None:
    words = ids_runner.generate(prompts=["  a cat on the mat "], seeds=[5], negative="the dog")
    ids = ids_runner.generate(
        ids=[np.array([0, 5, 6, 7, 10, 11, 12, 13, 2, 3, 4])],
        seeds=[5],
        negative_ids=np.array([0, 11, 8, 13, 2, 3, 4]),
    )
    np.testing.assert_array_equal(words.tokens, ids.tokens)


def test_each_image_may_have_a_negative_prompt_of_its_own(ids_runner: Runner) -> None:
    negatives = [prompt_of(7, seed=1), prompt_of(20, seed=2)]
    mixed = ids_runner.generate(ids=PROMPTS[:2], negative_ids=negatives, seeds=[1, 2])
    for index, negative in enumerate(negatives):
        alone = ids_runner.generate(ids=[PROMPTS[index]], negative_ids=negative, seeds=[index + 1])
        np.testing.assert_array_equal(alone.tokens[0], mixed.tokens[index])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": [1]}, "takes prompts, in words or ids, not classes"),
        ({"features": [np.zeros((1, 4), np.float32)]}, "takes prompts, in words or ids, not features"),
        ({"prompts": ["a cat"], "captions": "clean"}, "reads prompts as they are: leave captions out"),
        ({"ids": PROMPTS[:1], "schedule": "zipar:1"}, "rows end in a token: use zipar:2 to zipar:9"),
    ],
)
def test_what_the_model_does_not_take_is_refused(ids_runner: Runner, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        ids_runner.generate(**settings)
    assert type(raised.value).__name__ in ("RequestError", "ScheduleError")


@pytest.mark.parametrize("name", ["unconditional", "negative", "negative_ids", "prefill"])
def test_models_of_other_conditions_know_none_of_it(runner: Runner, text_runner: Runner, name: str) -> None:
    features = [np.zeros((3, 48), np.float32)]
    for opened, asked in ((runner, {"classes": [1]}), (text_runner, {"features": features})):
        with pytest.raises(RequestError, match=f"model knows no {name.replace('_', ' ')}: leave it out"):
            opened.generate(**asked, **{name: "image"})
