"""The randomness of a generation: numbers for each image and cell, whatever the schedule or batch.

One a cell, or one for each token that it could get, as the step graph's sampler draws.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from arforge.runner.backends.engine import StepBuffers

U64 = NDArray[np.uint64]

ROUNDS = 10
NOISE_STREAM, LANES = 2, 8
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


def noise(seed: int, cell: int, vocabulary: int) -> NDArray[np.float32]:
    """A number within (0, 1) for each token of the vocabulary, float32 [vocabulary], exact in 24 bits.

    Token t's comes from key (seed, 2) and counter (1 + t div 8, cell, 0, 0), of which it is the 32-bit lane t mod 8.
    """
    # numpy's generator counts up before it gives a block
    generator = np.random.Philox(key=np.array([seed, NOISE_STREAM], np.uint64), counter=[0, cell, 0, 0])
    lanes = generator.random_raw(4 * -(-vocabulary // LANES)).astype("<u8", copy=False).view("<u4")[:vocabulary]
    return ((lanes >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


@dataclass(frozen=True)
class Randomness:
    """What the cells of a window are drawn with, image by image."""

    seeds: U64  # (images)
    cells: NDArray[np.int64]  # (window) of the canvas
    uniforms: NDArray[np.float32]  # (images, window)

    @classmethod
    def of(cls, seeds: U64, cells: int) -> Randomness:
        """Of a window of all `cells`."""
        return cls(seeds, np.arange(cells), uniforms(seeds, cells))

    def part(self, images: slice, cells: NDArray[np.int64]) -> Randomness:
        """Those of some images and of the window of these cells."""
        return Randomness(self.seeds[images], self.cells[cells], self.uniforms[images, cells])

    def __len__(self) -> int:
        return len(self.seeds)

    def noise_of_cells(self, vocabulary: int) -> NDArray[np.float32]:
        """The numbers of every cell of the window for each token, (images, window, vocabulary)."""
        numbers = np.empty((len(self), len(self.cells), vocabulary), np.float32)
        for image, place in np.ndindex(numbers.shape[:2]):
            numbers[image, place] = noise(int(self.seeds[image]), int(self.cells[place]), vocabulary)
        return numbers

    def fill(self, buffers: StepBuffers, cells: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> None:
        """Write the numbers of cells of the window, (targets) or (images, targets), into the outputs `rows`.

        `rows` int64 (targets); None: one after another. What is written for cell -1, which is none, is left open.
        """
        outputs = np.arange(cells.shape[-1]) if rows is None else rows
        if buffers.uniforms is not None:
            buffers.uniforms[:, outputs] = self.uniforms[np.arange(len(self))[:, None], cells]
        if buffers.noise is not None:
            wanted = np.broadcast_to(cells, (len(self), cells.shape[-1]))
            for image, place in np.argwhere(wanted >= 0):
                numbers = buffers.noise[image, outputs[place]]
                numbers[:] = noise(int(self.seeds[image]), int(self.cells[wanted[image, place]]), len(numbers))


def _multiply(a: np.uint64, b: U64) -> tuple[U64, U64]:
    """High and low 64 bits of the 128-bit product."""
    a_high, a_low = a >> SHIFT, a & LOW
    b_high, b_low = b >> SHIFT, b & LOW
    low = a_low * b_low
    middle = a_high * b_low + (low >> SHIFT)
    cross = a_low * b_high + (middle & LOW)
    return a_high * b_high + (middle >> SHIFT) + (cross >> SHIFT), (cross << SHIFT) | (low & LOW)
