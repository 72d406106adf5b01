"""The randomness of a generation: one uniform number for each image and cell, whatever the schedule or batch.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
BELOW_ONE = np.float32(1 - 2**-24)


def philox(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """One Philox4x64-10 block for each element of uint64 arrays that broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    with np.errstate(over="ignore"):
        for _ in range(ROUNDS):
            high0, low0 = _multiply(MULTIPLIERS[0], c0)
            high1, low1 = _multiply(MULTIPLIERS[1], c2)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + WEYL[0], k1 + WEYL[1]
    return c0, c1, c2, c3


def uniforms(seeds: U64, cells: int, stream: int = 0) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1), float32 [seeds, cells]: `uniform(seed, cell)` with key (seed, `stream`)."""
    zero = np.zeros((1, 1), dtype=np.uint64)
    counter = np.arange(cells, dtype=np.uint64)[None, :]
    key = np.asarray(seeds, dtype=np.uint64)[:, None]
    bits, *_ = philox((counter, zero, zero, zero), (key, zero + np.uint64(stream)))
    numbers = ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).astype(np.float32)
    return np.minimum(numbers, BELOW_ONE)


def _multiply(a: np.uint64, b: U64) -> tuple[U64, U64]:
    """High and low 64 bits of the 128-bit product."""
    a_high, a_low = a >> SHIFT, a & LOW
    b_high, b_low = b >> SHIFT, b & LOW
    low = a_low * b_low
    middle = a_high * b_low + (low >> SHIFT)
    cross = a_low * b_high + (middle & LOW)
    return a_high * b_high + (middle >> SHIFT) + (cross >> SHIFT), (cross << SHIFT) | (low & LOW)
