"""Weights in blocks of 4 or 8 bits, each with a scale of its own; numpy alone, since engines are made of it too.

A matrix [outputs, inputs] is cut into blocks along its inputs. Codes are unsigned with the zero point in the middle,
and lie as ONNX packs them, which is also how ONNX Runtime's own operators read them: engines share the bundle's file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = {"int8": 8, "int4": 4}
SIZES = (256, 128, 64, 32, 16)  # inputs that may share a scale
FINEST = 16
STEPS = {8: (127.0,), 4: (7.0, 7.5, 8.0, 8.5, 9.0, 10.0)}  # scales that a block's largest value may be
LAST = 8  # bits at least of the last product, which makes the logits: it is small, and tokens are drawn from them


def zero_point(bits: int) -> int:
    return 1 << (bits - 1)


def block_size(inputs: int, wanted: int) -> int | None:
    """The largest block of at most `wanted` inputs that divides a layer's; None where none does."""
    return next((size for size in SIZES if size <= wanted and inputs % size == 0), None)


def quantized(values: NDArray[np.float32], bits: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [outputs, inputs] and scales [outputs, blocks] of a matrix [outputs, inputs] that blocks divide.

    Symmetric, to the nearest code. Of 4 bits a block takes that of a few scales which costs it the least squared error:
    what lies beyond the largest code is clipped.
    """
    blocks = values.reshape(len(values), -1, block)
    largest = np.abs(blocks).max(axis=2)
    largest[largest == 0] = STEPS[bits][0]
    scales = largest / np.float32(STEPS[bits][0])
    codes = rounded(blocks, scales, bits)
    if len(STEPS[bits]) > 1:
        least = squared_error(blocks, codes, scales)
    for steps in STEPS[bits][1:]:
        tried = largest / np.float32(steps)
        found = rounded(blocks, tried, bits)
        error = squared_error(blocks, found, tried)
        better = error < least
        scales[better], codes[better], least[better] = tried[better], found[better], error[better]
    codes += np.float32(zero_point(bits))
    return codes.astype(np.uint8).reshape(values.shape), scales


def rounded(blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Codes less the zero point, as floats."""
    codes = blocks / scales[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, -zero_point(bits), zero_point(bits) - 1, out=codes)


def squared_error(
    blocks: NDArray[np.float32], codes: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    error = codes * scales[..., None]
    error -= blocks
    found: NDArray[np.float32] = np.einsum("ijk,ijk->ij", error, error)
    return found


def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes as they are stored: two of 4 bits in a byte, the first in its lower half."""
    if bits == 8:
        return codes
    pairs = codes.reshape(len(codes), -1, 2)
    return np.bitwise_or(pairs[..., 0], np.left_shift(pairs[..., 1], 4, dtype=np.uint8))


def unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return stored
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)


def dequantized(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The values [outputs, inputs] that stored codes stand for."""
    blocks = codes.reshape(*scales.shape, -1).astype(np.float32) - np.float32(zero_point(bits))
    return (blocks * scales[..., None]).reshape(codes.shape)
