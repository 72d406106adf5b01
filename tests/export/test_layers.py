from __future__ import annotations

import math

import pytest
import torch

from arforge.export.layers import Attention, FeedForward, RMSNorm, Rotary, rotary_table, write_cache

GRID, SIZE, BASE = (3, 5), 16, 10000.0


def test_row_zero_of_the_rotary_table_is_zero_in_both_halves() -> None:
    cosine, sine = rotary_table(GRID, SIZE, BASE)
    assert cosine.shape == sine.shape == (1 + 15, SIZE // 2)
    assert not cosine[0].any()
    assert not sine[0].any()


@pytest.mark.parametrize("base", [10000.0, 500.0])
@pytest.mark.parametrize("size", [4, 8, 12, 16, 100])
def test_each_cell_turns_half_the_pairs_by_its_row_and_half_by_its_column(size: int, base: float) -> None:
    cosine, sine = rotary_table(GRID, size, base)
    quarter = size // 4
    for cell in range(15):
        for pair in range(2 * quarter):
            place = cell // 5 if pair < quarter else cell % 5
            angle = place * base ** (-2 * (pair % quarter) / (size / 2))
            assert cosine[1 + cell, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sine[1 + cell, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_turning_rotates_interleaved_pairs_and_erases_inputs_without_position() -> None:
    tables = rotary_table(GRID, SIZE, BASE)
    x = torch.randn(2, 3, 2, SIZE)
    positions = torch.tensor([[0, 1], [7, 15]])
    turned = Rotary(*tables, positions).turn(x)
    assert not turned[0, :, 0].any()
    torch.testing.assert_close(turned[0, :, 1], x[0, :, 1])  # cell 0 turns by no angle
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    for row, column in ((1, 0), (1, 1)):
        factors = torch.complex(*(table[positions[row, column]] for table in tables))
        expected = torch.view_as_real(pairs[row, :, column] * factors).flatten(-2)
        torch.testing.assert_close(turned[row, :, column], expected)


def test_write_cache_replaces_the_slots_of_each_row_and_no_others() -> None:
    cache, update = torch.randn(3, 2, 6, 4), torch.randn(3, 2, 2, 4)
    before = cache.clone()
    written = write_cache(cache, update, torch.tensor([0, 4, 2]))
    assert torch.equal(cache, before)
    for row, first in enumerate((0, 4, 2)):
        expected = before[row].clone()
        expected[:, first : first + 2] = update[row]
        assert torch.equal(written[row], expected)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(6, eps=0.01)
    norm.weight.data = torch.arange(6.0)
    x = torch.randn(4, 6)
    torch.testing.assert_close(norm(x), x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 0.01) * torch.arange(6.0))


def test_feed_forward_gates_with_silu() -> None:
    module = FeedForward(4, 8)
    x = torch.randn(3, 4)
    w1, w2, w3 = module.w1.weight, module.w2.weight, module.w3.weight
    gate = x @ w1.T
    torch.testing.assert_close(module(x), (gate * torch.sigmoid(gate) * (x @ w3.T)) @ w2.T)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_over_a_cache_equals_attention_over_the_inputs(kv_heads: int) -> None:
    torch.manual_seed(0)
    module = Attention(64, heads=4, kv_heads=kv_heads)
    tables = rotary_table(GRID, SIZE, BASE)
    x, positions = torch.randn(2, 5, 64), torch.arange(5).expand(2, 5)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    expected, _ = module(x, Rotary(*tables, positions), causal, None, None)
    cache = (torch.zeros(2, kv_heads, 7, SIZE), torch.zeros(2, kv_heads, 7, SIZE))
    found = []
    for first, last in ((0, 2), (2, 5)):
        mask = (torch.arange(7) <= torch.arange(first, last)[:, None]).expand(2, 1, -1, -1)
        rotary = Rotary(*tables, positions[:, first:last])
        out, cache = module(x[:, first:last], rotary, mask, torch.tensor([first, first]), cache)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)
