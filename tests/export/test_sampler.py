from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

from arforge.export.sampler import guide, keep_likely, sample

VOCAB = 97


def logits_of(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(seed))


def settings(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([temperature]), torch.tensor([top_k]), torch.tensor([top_p])


@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 50, 96, 97, 98, 10**9])
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.9, 0.5, 0.1, 1e-6])
def test_filters_keep_what_a_sort_keeps(top_k: int, top_p: float) -> None:
    logits = logits_of(1, 20, 3)
    _, k, p = settings(top_k=top_k, top_p=top_p)
    kept = torch.isfinite(keep_likely(logits, k, p)).numpy()
    expected = oracle.probabilities(logits.numpy(), top_k=top_k, top_p=top_p) > 0
    np.testing.assert_array_equal(kept, expected)
    assert kept.any(-1).all()
    if 0 < top_k <= VOCAB and top_p == 1:
        assert (kept.sum(-1) == top_k).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 60])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4])
def test_draws_are_the_inverse_of_the_published_distribution(temperature: float, top_k: int, top_p: float) -> None:
    logits = logits_of(2, 2 * 300, 2)
    numbers = torch.rand(300, 2, generator=torch.Generator().manual_seed(3))
    drawn, guided = sample(logits, numbers, torch.tensor([1.5]), *settings(temperature, top_k, top_p))
    conditional, unconditional = logits.chunk(2)
    torch.testing.assert_close(guided, unconditional + (conditional - unconditional) * 1.5)
    shares = oracle.probabilities(guided.numpy(), temperature, top_k, top_p)
    np.testing.assert_array_equal(drawn.numpy(), oracle.draw(shares, numbers.numpy()))


def test_equal_logits_stay_together() -> None:
    logits = torch.tensor([[5.0, 1.0, 5.0, 5.0, 0.0]])
    _, k, p = settings(top_k=2)
    assert torch.isfinite(keep_likely(logits, k, p)).tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_filters_hold_for_narrow_and_wide_logits(scale: float) -> None:
    logits = logits_of(4, 30) * scale
    _, k, p = settings(top_k=10)
    assert (torch.isfinite(keep_likely(logits, k, p)).sum(-1) == 10).all()


def test_logits_that_are_already_left_out_stay_out() -> None:
    logits = torch.tensor([[2.0, -torch.inf, 1.0, 0.0]])
    _, k, p = settings(top_k=3, top_p=0.99)
    assert torch.isfinite(keep_likely(logits, k, p)).tolist() == [[True, False, True, True]]


def test_filters_that_are_off_change_nothing() -> None:
    logits = logits_of(5, 4)
    _, k, p = settings()
    assert torch.equal(keep_likely(logits, k, p), logits)


def test_temperature_zero_takes_the_likeliest_whatever_the_number() -> None:
    logits = logits_of(6, 50, 2)
    for number in (0.0, 0.5, 1 - 2**-24):
        drawn, guided = sample(logits, torch.full((50, 2), number), torch.ones(1), *settings(temperature=0.0))
        assert torch.equal(drawn, guided.argmax(-1))


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.5)])
def test_the_ends_of_the_unit_interval_draw_kept_tokens(number: float, top_k: int, top_p: float) -> None:
    logits = logits_of(7, 200, 1)
    drawn, _ = sample(logits, torch.full((200, 1), number), torch.ones(1), *settings(1.0, top_k, top_p))
    kept = oracle.probabilities(logits.numpy(), top_k=top_k, top_p=top_p) > 0
    assert 0 <= drawn.min() <= drawn.max() < VOCAB
    assert np.take_along_axis(kept, drawn.numpy()[..., None], axis=-1).all()


def test_without_unconditional_rows_guidance_gives_the_conditional_logits_exactly() -> None:
    logits = logits_of(8, 5, 3)
    for scale in (1.0, 2.0, 7.5):
        assert torch.equal(guide(logits, 5, torch.tensor([scale])), logits)


def test_guidance_moves_away_from_the_unconditional_rows() -> None:
    conditional, unconditional = logits_of(9, 4, 2), logits_of(10, 4, 2)
    stacked = torch.cat([conditional, unconditional])
    torch.testing.assert_close(guide(stacked, 4, torch.tensor([1.0])), conditional)
    torch.testing.assert_close(guide(stacked, 4, torch.tensor([3.0])), 3 * conditional - 2 * unconditional)


def test_a_scale_of_one_takes_the_conditional_logits_bit_for_bit() -> None:
    conditional, unconditional = logits_of(11, 3, 2), 1e6 * logits_of(12, 3, 2)
    scales = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    guided = guide(torch.cat([conditional, unconditional]), 3, scales)
    assert torch.equal(guided[scales == 1], conditional[scales == 1])
    moved = unconditional + (conditional - unconditional) * scales[..., None]
    assert torch.equal(guided[scales != 1], moved[scales != 1])
    assert (moved[0, 0] != conditional[0, 0]).any()  # what the formula alone would give


def test_each_image_is_drawn_with_its_own_settings() -> None:
    images, targets = 6, 4
    logits, numbers = logits_of(13, 2 * images, targets), torch.rand(images, targets)
    scales = torch.rand(images, targets) * 3 + 1
    temperature, top_p = torch.tensor([1, 0.5, 0, 2, 1, 1]), torch.tensor([1, 0.9, 1, 0.3, 1, 0.7])
    top_k = torch.tensor([0, 0, 3, 0, 7, 4])
    together = sample(logits, numbers, scales, temperature, top_k, top_p)
    for image in range(images):
        one = slice(image, image + 1)
        pair = logits[[image, images + image]]
        alone = sample(pair, numbers[one], scales[one], temperature[one], top_k[one], top_p[one])
        for found, expected in zip(together, alone, strict=True):
            assert torch.equal(found[one], expected)


def test_filters_of_one_image_leave_anothers_logits_bit_for_bit() -> None:
    logits = torch.stack([logits_of(14, 2), 3e7 * logits_of(15, 2), logits_of(16, 2)])  # 1 is nothing beside 3e7
    kept = keep_likely(logits, torch.tensor([5, 0, 0]), torch.tensor([1.0, 1.0, 1.0]))
    assert (torch.isfinite(kept[0]).sum(-1) == 5).all()
    assert torch.equal(kept[1:], logits[1:])
