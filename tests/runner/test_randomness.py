from __future__ import annotations

import numpy as np
import pytest

from arforge.runner import randomness
from arforge.runner.randomness import philox, uniforms

LAST = 2**64 - 1


def block(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    k0, k1 = (np.array([word], dtype=np.uint64) for word in key)
    return [int(word[0]) for word in philox((c0, c1, c2, c3), (k0, k1))]


def one(seed: int, cell: int, stream: int = 0) -> np.float32:
    return uniforms(np.array([seed], dtype=np.uint64), cell + 1, stream)[0, cell]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        ((LAST,) * 4, (LAST,) * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x452821E638D01377, 0xBE5466CF34E90C6C),
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, ...], expected: str) -> None:
    assert " ".join(f"{word:016x}" for word in block(counter, key)) == expected


@pytest.mark.parametrize("key", [(0, 0), (7, 0), (7, 1), (LAST, 0), (LAST, LAST), (2**32, 2**63)])
@pytest.mark.parametrize("counter", [(1, 0, 0, 0), (576, 0, 0, 0), (LAST, LAST, 1, 0), (5, 6, 7, 8)])
def test_blocks_equal_numpys(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    before = sum(word << (64 * place) for place, word in enumerate(counter)) - 1  # numpy counts up before it draws
    generator = np.random.Philox(counter=before, key=key[0] | key[1] << 64)
    assert block(counter, key) == [int(word) for word in generator.random_raw(4)]


@pytest.mark.parametrize(
    ("seed", "cell", "expected"),
    [
        (0, 0, 0.087239124),
        (0, 1, 0.011546754),
        (0, 575, 0.2978411),
        (1, 0, 0.7949013),
        (1, 1, 0.30356804),
        (1, 576, 0.93903345),
        (12345678901234567890, 2, 0.99686205),
        (2**63, 0, 0.6569475),
        (2**63, 575, 0.9112391),
        (LAST, 0, 0.98333836),
        (LAST, 1, 0.23494159),
        (LAST, 576, 0.5847382),
    ],
)
def test_vectors_of_the_uniform_numbers(seed: int, cell: int, expected: float) -> None:
    assert one(seed, cell) == np.float32(expected)


@pytest.mark.parametrize("seed", [0, 3, 2**53 + 1, LAST])
def test_a_number_is_the_top_53_bits_of_its_block_rounded_to_float32(seed: int) -> None:
    for cell in range(20):
        exact = (block((cell, 0, 0, 0), (seed, 0))[0] >> 11) / 2**53
        assert one(seed, cell) == np.float32(exact)


def test_a_number_depends_on_its_seed_and_cell_alone() -> None:
    seeds = np.array([9, 0, LAST, 4], dtype=np.uint64)
    table = uniforms(seeds, 50)
    assert (table.shape, table.dtype) == ((4, 50), np.float32)
    np.testing.assert_array_equal(uniforms(seeds[::-1], 30), table[::-1, :30])
    np.testing.assert_array_equal(uniforms(seeds[2:3], 50), table[2:3])


def test_streams_and_neighbouring_seeds_differ() -> None:
    assert len({float(one(seed, 3, stream)) for seed in range(50) for stream in range(2)}) == 100


def test_numbers_fill_the_unit_interval_evenly() -> None:
    table = uniforms(np.arange(100, dtype=np.uint64), 1000)
    assert table.min() >= 0
    assert table.max() < 1
    counts, _ = np.histogram(table, bins=100, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-squared, 99 degrees of freedom: p < 0.001 above 148


def test_a_seed_whose_number_rounds_to_one_stays_below_it() -> None:
    exact = (block((0, 0, 0, 0), (229917, 0))[0] >> 11) / 2**53
    assert np.float32(exact) == 1
    assert one(229917, 0) == np.float32(1 - 2**-24)


@pytest.mark.parametrize("bits", [LAST, LAST - (2**11 - 1), LAST - 2**38])
def test_numbers_that_round_to_one_stay_below_it(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    assert np.float32((bits >> 11) / 2**53) == 1
    blocks = (np.full((1, 1), bits, dtype=np.uint64),) * 4
    monkeypatch.setattr(randomness, "philox", lambda *_: blocks)
    number = uniforms(np.zeros(1, dtype=np.uint64), 1)[0, 0]
    assert number == np.nextafter(np.float32(1), np.float32(0))
