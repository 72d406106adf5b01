"""Whether schedules keep the law of next-token decoding, by enumeration: 2 tokens, 9 cells, every random number.

The model gives token 1 the probability 1/2 or 1 by what an input sees, so a random number is one of two that are as
likely, and the 512 images that have every combination of them show the law itself, without statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from arforge.runner import compile_schedule
from arforge.runner.decoding import AdaptiveDecoding, Drawing, JacobiDecoding, RowImage, TableDecoding
from arforge.runner.plan import NO_PREFIXES, make_plan
from arforge.runner.randomness import Randomness

GRID, CELLS = (3, 3), 9
NUMBERS = np.array(list(product((0.25, 0.75), repeat=CELLS)), np.float32)  # of every image and cell
CONDITION = 5  # the token of it, which is no cell's
WEIGHTS = np.array([4, 4, 6, 8, 0, 1, 7, 8, 2, 2])  # of tokens by their position
Law = Counter[tuple[int, ...]]


class Model:
    """Caches and steps of the model, for all images at once."""

    def __init__(self, images: int, slots: int) -> None:
        self.tokens, self.positions = np.zeros((2, images, slots), np.int64)
        self.certain = np.zeros((images, 0), np.bool_)  # whether each output of the last step can only be 1

    def run(self, buffers: Any) -> None:
        images, width = buffers.tokens.shape
        slots = buffers.write_index[:, None] + np.arange(width)
        own = np.arange(images)[:, None]
        self.tokens[own, slots], self.positions[own, slots] = buffers.tokens, buffers.positions
        self.certain = certain(self.tokens[:, None], self.positions[:, None], buffers.mask[:, 0])
        buffers.next_tokens[:] = self.certain | (buffers.uniforms < 0.5)


def certain(tokens: np.ndarray, positions: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Whether what is seen leaves token 1 alone; all (..., slots)."""
    return np.where(seen, (tokens + 1) * WEIGHTS[positions], 0).sum(axis=-1) % 3 == 0


class Buffers:
    """Of a step of some images; `of` as the engine's."""

    query_positions = noise = None

    def __init__(self, images: int, width: int, slots: int) -> None:
        self.tokens, self.positions, self.next_tokens = np.zeros((3, images, width), np.int64)
        self.write_index, self.mask = np.zeros(images, np.int64), np.zeros((images, 1, width, slots), bool)
        self.uniforms, self.guidance = np.zeros((2, images, width), np.float32)


def decoded(specification: str, kind: Callable[..., Any], numbers: np.ndarray = NUMBERS) -> Any:
    """The decoding, done, of images with these numbers."""
    schedule = compile_schedule(specification, GRID)
    plan = make_plan(schedule, None)
    images = len(numbers)
    known = np.zeros((images, CELLS + 1), np.int64)
    known[:, CELLS] = CONDITION
    random = Randomness(np.zeros(images, np.uint64), np.arange(CELLS), numbers)
    drawing = Drawing(random, np.ones(images))
    held = {JacobiDecoding: plan.line, AdaptiveDecoding: schedule.rows}
    own = [fact for base, fact in held.items() if isinstance(kind, type) and issubclass(kind, base)]
    decoding = kind(plan, *own, known, NO_PREFIXES, drawing)
    model = decoding.model = Model(images, plan.slots)
    while (shape := decoding.shape) is not None:
        buffers: Any = Buffers(images, shape[0], plan.slots)
        decoding.fill(buffers)
        model.run(buffers)
        decoding.store(buffers)
    return decoding


def law_of(decoding: Any) -> Law:
    """Of 512 images, how many are each picture."""
    return Counter(tuple(row) for row in decoding.known[:, :CELLS].tolist())


def next_token() -> Law:
    """The law of next-token decoding as the product of its conditional probabilities."""
    law = {(): 512}
    for cell in range(CELLS):
        grown: dict[tuple[int, ...], int] = {}
        for picture, images in law.items():
            tokens = np.array([CONDITION, *picture])
            if certain(tokens, np.arange(cell + 1), np.ones(cell + 1, bool)):
                grown[*picture, 1] = images
            else:
                grown[*picture, 0] = grown[*picture, 1] = images // 2
        law = grown
    return Counter(law)


def distance(first: Law, second: Law) -> float:
    """Total variation."""
    return sum(abs(first[picture] - second[picture]) for picture in first | second) / 1024


@pytest.mark.parametrize("window", [2, 3, 5, 9])
def test_running_ahead_keeps_the_law_of_next_token(window: int) -> None:
    found = decoded(f"jacobi:{window}", JacobiDecoding)
    assert law_of(found) == next_token()
    assert len(next_token()) > 30
    assert len(set(found.passes.tolist())) > 1


class Ratio(JacobiDecoding):
    """A shortcut: a draft stays where the cell's number is below the ratio of its probabilities, else it is as drawn.

    It needs a number of its own, and what is rejected must be drawn from the difference of the two laws.
    """

    model: Model
    before: np.ndarray

    def _judge(self, fed: Any, drawn: Any) -> Any:
        cells = self._plan.windows[self._width].target_cells[self._first]
        own = self._image
        if not hasattr(self, "before"):
            self.before = np.full((len(cells), CELLS), np.nan)  # first drafts are certain to be what they are
        now = np.where(self.model.certain, 1.0, 0.5)  # of token 1
        token = self.known[own, cells]
        new, old = (np.where(token == 1, one, 1 - one) for one in (now, self.before[own, cells]))
        old = np.where(np.isnan(old), 1, old)
        stays = self._drafted[own, cells] & (self._drawing.random.uniforms[own, cells] * old < new)
        drawn[:] = np.where(stays, token, drawn)
        self.before[own, cells] = now
        return super()._judge(fed, drawn)


def test_a_ratio_without_a_number_and_a_remainder_of_its_own_does_not() -> None:
    assert distance(law_of(decoded("jacobi:3", Ratio)), next_token()) > 0.05


class Lockstep(JacobiDecoding):
    """All images advance by what the slowest does: harmless by equality, if slow."""

    def _judge(self, fed: Any, drawn: Any) -> Any:
        wrong, misled = super()._judge(fed, drawn)
        running = self._at < len(self._line)
        return wrong | wrong[running].any(axis=0), misled | misled[running].any(axis=0)


def test_running_ahead_in_lockstep_is_slower_and_keeps_the_law() -> None:
    found = decoded("jacobi:3", Lockstep)
    assert law_of(found) == next_token()
    assert found.passes.sum() > decoded("jacobi:3", JacobiDecoding).passes.sum()


@pytest.mark.parametrize("base", ["zipar:1", "zipar:2,first-row=windowed", "zipar:2,seed=nearest,holes=masked"])
@pytest.mark.parametrize("window", [3, 6])
def test_running_ahead_keeps_the_law_of_other_tables(base: str, window: int) -> None:
    wanted = law_of(decoded(base, TableDecoding))
    assert law_of(decoded(f"{base},jacobi={window}", JacobiDecoding)) == wanted
    assert distance(wanted, next_token()) > 0.05


ADAPTIVE = "zipar:adaptive=1,first-row=windowed,holes=masked"


def test_rows_that_start_by_themselves_have_a_law_of_their_own() -> None:
    """Neither next-token's nor that of fixed starts: when a row starts depends on what its first token came out as."""
    found = law_of(decoded(ADAPTIVE, AdaptiveDecoding))
    assert distance(found, next_token()) > 0.02
    for window in (1, 2, 3):
        assert distance(found, law_of(decoded(f"zipar:{window},first-row=windowed,holes=masked", TableDecoding))) > 0.02


def test_that_law_is_the_same_whatever_the_batch() -> None:
    together = decoded(ADAPTIVE, AdaptiveDecoding)
    for image in range(0, 512, 7):
        alone = decoded(ADAPTIVE, AdaptiveDecoding, NUMBERS[image : image + 1])
        assert alone.known[0].tolist() == together.known[image].tolist()
        assert alone.passes[0] == together.passes[image]


class AllOrNone(AdaptiveDecoding):
    """A shortcut: rows start when those of all images may."""

    def store(self, buffers: Any) -> None:
        settled = [
            image._rows.trial is None or int(drawn[image.step.targets[-1].row]) == image._draft
            for image, drawn in zip(self._images, buffers.next_tokens, strict=True)
            if not image.complete
        ]
        if not all(settled):
            for image in self._images:
                image._draft = None  # no token is this one
        super().store(buffers)


def test_rows_of_all_images_that_start_together_would_change_it() -> None:
    found = law_of(decoded(ADAPTIVE, AllOrNone))
    assert distance(found, law_of(decoded(ADAPTIVE, AdaptiveDecoding))) > 0.02


def test_a_row_waits_until_its_first_token_comes_out_again() -> None:
    schedule = compile_schedule(ADAPTIVE, GRID)
    assert schedule.rows is not None
    image = RowImage(make_plan(schedule, None), schedule.rows)
    steps = []
    for drawn in ([7], [8, 1], [9, 1], [0, 4, 5], [2, 6], [6], [3], [4]):
        width = image.step.width
        steps.append((width, [target.cell for target in image.take(np.array(drawn))]))
        assert width == len(drawn)
    # row 1 settles at once; row 2 does not until row 1 is complete, and starts behind its last token
    assert steps == [(1, [0]), (2, [1]), (2, [2, 3]), (3, [4]), (2, [5]), (1, [6]), (1, [7]), (1, [8])]
    assert image.complete
