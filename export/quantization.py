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
LAST = 8  # bits at least of the last product, which makes the logits: it is small, and tokens are drawn from them


def zero_point(bits: int) -> int:
    return 1 << (bits - 1)


def block_size(inputs: int, wanted: int) -> int | None:
    """The largest block of at most `wanted` inputs that divides a layer's; None where none does."""
    return next((size for size in SIZES if size <= wanted and inputs % size == 0), None)


def quantized(values: NDArray[np.float32], bits: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [outputs, inputs] and scales [outputs, blocks] of a matrix [outputs, inputs] that blocks divide.

    Symmetric, to the nearest code.
    """
    largest = zero_point(bits) - 1
    blocks = values.reshape(len(values), -1, block)
    scales = np.abs(blocks).max(axis=2) / np.float32(largest)
    scales[scales == 0] = 1
    codes = np.rint(blocks / scales[..., None]) + np.float32(zero_point(bits))
    return codes.astype(np.uint8).reshape(values.shape), scales


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
