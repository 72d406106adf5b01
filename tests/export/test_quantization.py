from __future__ import annotations

import numpy as np
import pytest

from arforge.export.quantization import block_size, dequantized, packed, quantized, unpacked

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 64])
def test_each_weight_is_within_half_a_step_of_its_block_or_clipped(bits: int, block: int) -> None:
    values = RANDOM.standard_normal((24, 128)).astype(np.float32)
    values[:, 3] *= 50  # one input with large weights costs its own block alone
    codes, scales = quantized(values, bits, block)
    assert (codes.shape, scales.shape) == ((24, 128), (24, 128 // block))
    assert codes.max() < 2**bits
    assert scales.dtype == np.float32
    error = np.abs(dequantized(codes, scales, bits) - values)
    clipped = (bits == 4) & ((codes == 0) | (codes == 15))
    assert ((error <= 0.5001 * np.repeat(scales, block, axis=1)) | clipped).all()
    assert clipped.mean() < 0.1


def test_four_bits_clip_where_that_costs_less() -> None:
    values = RANDOM.standard_normal((64, 256)).astype(np.float32)
    codes, scales = quantized(values, 4, 32)
    blocks = values.reshape(64, -1, 32)
    plain = np.abs(blocks).max(axis=2) / np.float32(7)
    rounded = np.rint(blocks / plain[..., None]) * plain[..., None]
    before = np.square(rounded - blocks).sum(axis=2)
    after = np.square(dequantized(codes, scales, 4).reshape(blocks.shape) - blocks).sum(axis=2)
    assert (after <= 1.0001 * before).all()
    assert after.sum() < 0.85 * before.sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero_under_a_scale_that_is_positive(bits: int) -> None:
    codes, scales = quantized(np.zeros((2, 32), np.float32), bits, 16)
    assert (codes == 2 ** (bits - 1)).all()
    assert (scales == 1).all()
    assert not dequantized(codes, scales, bits).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_low_half_first(bits: int) -> None:
    codes = RANDOM.integers(0, 2**bits, (5, 32)).astype(np.uint8)
    stored = packed(codes, bits)
    assert (stored.dtype, stored.shape) == (np.uint8, (5, 32 * bits // 8))
    assert stored[0, 0] == (codes[0, 0] | codes[0, 1] << 4 if bits == 4 else codes[0, 0])
    np.testing.assert_array_equal(unpacked(stored, bits), codes)


@pytest.mark.parametrize(
    ("inputs", "wanted", "expected"), [(4096, 32, 32), (4096, 256, 256), (96, 128, 32), (48, 64, 16), (40, 32, None)]
)
def test_a_block_divides_a_layers_inputs(inputs: int, wanted: int, expected: int | None) -> None:
    assert block_size(inputs, wanted) == expected
