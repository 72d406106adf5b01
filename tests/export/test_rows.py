from __future__ import annotations

import pytest
import torch

from arforge.export.layers import pad_values, pad_weight
from arforge.export.rows import BLOCK, Rows, concatenate, rows_of

TABLE = torch.arange(24.0).reshape(8, 3)


def lazy(values: torch.Tensor) -> Rows:
    return Rows(tuple(values.shape), values.dtype, lambda first, end: values[first:end])


def test_slices_of_slices_are_read_where_they_lie() -> None:
    rows = lazy(TABLE)[2:7][1:4]
    assert (rows.shape, rows.dtype) == ((3, 3), torch.float32)
    assert torch.equal(rows.tensor(), TABLE[3:6])
    assert torch.equal(rows.read(1, 2), TABLE[4:5])
    assert lazy(TABLE)[8:].tensor().shape == (0, 3)


@pytest.mark.parametrize("part", [slice(0, 9), slice(-1, 3), slice(5, 4), slice(0, 4, 2)])
def test_slices_that_leave_the_tensor_are_refused(part: slice) -> None:
    with pytest.raises(IndexError, match=r"of a tensor \[8, 3\]"):
        lazy(TABLE)[part]


def test_tensors_stand_below_each_other_whatever_part_is_read() -> None:
    parts = [lazy(TABLE), TABLE[:1], lazy(TABLE)[2:2], lazy(TABLE[4:6])]
    whole = torch.cat([TABLE, TABLE[:1], TABLE[4:6]])
    rows = concatenate(parts)
    assert rows.shape == whole.shape
    for first in range(12):
        for end in range(first, 12):
            assert torch.equal(rows.read(first, end), whole[first:end])
    assert torch.equal(rows[7:10].tensor(), whole[7:10])


def test_the_widest_type_is_that_of_all() -> None:
    rows = concatenate([lazy(TABLE.to(torch.bfloat16)), TABLE, TABLE.to(torch.float16)])
    assert rows.dtype == rows.read(0, 2).dtype == rows.read(3, 3).dtype == torch.float32
    assert concatenate([TABLE.to(torch.bfloat16)] * 2).dtype == torch.bfloat16


@pytest.mark.parametrize("other", [torch.ones(2, 4), torch.ones(3), torch.tensor(1.0)])
def test_tensors_of_other_widths_are_refused(other: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not stand below each other"):
        concatenate([TABLE, other])


def test_blocks_are_bounded_and_cover_all_rows() -> None:
    width = BLOCK // 4 // 3
    rows = Rows((7, width), torch.bfloat16, lambda a, b: torch.arange(a, b, dtype=torch.bfloat16)[:, None])
    blocks = list(rows.blocks())
    assert [first for first, _ in blocks] == [0, 3, 6]
    assert torch.cat([block for _, block in blocks]).flatten().tolist() == list(range(7))
    assert [block.item() for _, block in rows_of(torch.tensor(2.5)).blocks()] == [2.5]
    assert [len(block) for _, block in Rows((2, BLOCK), torch.float32, lambda a, b: TABLE[a:b]).blocks()] == [1, 1]


@pytest.mark.parametrize("name", ["layers.0.attention.wqkv.weight", "layers.0.attention.wo.weight", "norm.weight"])
def test_heads_are_padded_alike_in_rows_and_in_memory(name: str) -> None:
    weight = torch.arange(24.0 * 24).reshape(24, 24)
    wanted = pad_weight(name, weight, 6)
    rows = pad_values(name, lazy(weight), 6)
    assert isinstance(rows, Rows)
    assert rows.shape == wanted.shape
    assert torch.equal(rows.tensor(), wanted)
    assert torch.equal(rows.read(3, 13), wanted[3:13])
    assert pad_values(name, TABLE, 8) is TABLE
