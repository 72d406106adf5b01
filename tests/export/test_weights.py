from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arforge.export import rows
from arforge.export.weights import Place, write
from arforge.runner.errors import CheckpointError

LAYOUT = {
    "plain": Place(offset=0, length=4 * 6, transposed=False),
    "turned": Place(offset=4096, length=4 * 6, transposed=True),
    "last": Place(offset=8192, length=4, transposed=False),
}
TENSORS = {
    "plain": torch.arange(6.0).reshape(2, 3) / 8,
    "turned": torch.arange(6.0).reshape(2, 3) / 4,
    "last": torch.tensor([0.5]),
}


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_stand_at_their_places_as_float32(tmp_path: Path, kind: torch.dtype) -> None:
    write(tmp_path / "weights", LAYOUT, lambda name: TENSORS[name].to(kind))
    data = (tmp_path / "weights").read_bytes()
    assert len(data) == 8196
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 6), TENSORS["plain"].flatten().numpy())
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 6, 4096), TENSORS["turned"].t().flatten().numpy())
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 1, 8192), [0.5])


def test_tensors_that_need_gradients_or_are_views_are_written_too(tmp_path: Path) -> None:
    views = {"plain": torch.arange(12.0).reshape(2, 6)[:, ::2], "turned": torch.nn.Parameter(TENSORS["turned"])}
    write(tmp_path / "weights", LAYOUT, lambda name: views.get(name, TENSORS[name]))
    data = (tmp_path / "weights").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 6), [0, 2, 4, 6, 8, 10])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_values_that_float32_does_not_hold_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    def source(name: str) -> Tensor:
        return torch.full((2, 3), bad, dtype=torch.float64) if name == "turned" else TENSORS[name]

    with pytest.raises(CheckpointError, match="tensor turned holds non-finite values: the checkpoint is damaged"):
        write(tmp_path / "weights", LAYOUT, source)


def test_only_one_tensor_is_asked_for_at_a_time(tmp_path: Path) -> None:
    asked: list[str] = []
    write(tmp_path / "weights", LAYOUT, lambda name: (asked.append(name), TENSORS[name])[1])
    assert asked == list(LAYOUT)


@pytest.mark.parametrize("transposed", [True, False])
def test_rows_are_written_in_blocks_as_a_whole_tensor_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool
) -> None:
    values = torch.randn(10, 5)  # the last block is one row
    layout = {"x": Place(offset=4096, length=4 * 50, transposed=transposed)}
    write(tmp_path / "whole", layout, lambda name: values)
    monkeypatch.setattr(rows, "BLOCK", 4 * 5 * 3)
    asked: list[tuple[int, int]] = []

    def read(first: int, end: int) -> Tensor:
        asked.append((first, end))
        return values[first:end]

    write(tmp_path / "blocks", layout, lambda name: rows.Rows((10, 5), torch.float32, read))
    assert asked == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()
