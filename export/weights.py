"""Streams weights into one external-data file that all graphs of a precision share.

Tensors pass in blocks of rows, so an export's peak is a few such blocks and what tracing takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from arforge.export.quantization import packed, quantized, zero_point
from arforge.export.rows import Rows, Values, rows_of
from arforge.export.storage import CODES, SCALES, ZEROS
from arforge.export.trace import fold_transposes, is_weight, weight_reference
from arforge.runner.errors import CheckpointError

ALIGNMENT = 4096  # lets a runtime map a tensor straight from the file

Source = Callable[[str], Values]

FLOATS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT16: torch.float16,
}
BITS = {dtype: bits for bits, dtype in CODES.items()}


@dataclass(frozen=True)
class Place:
    offset: int
    length: int
    transposed: bool  # stored as the transpose of the module's parameter
    dtype: ir.DataType = ir.DataType.FLOAT


def layout_of(models: list[ir.Model], prefix: str) -> dict[str, Place]:
    """Give each weight of `models` one place; the models name them alike, with `prefix` before.

    Matrix weights that are only ever used transposed are stored that way, and the Transpose nodes go.
    """
    layout: dict[str, Place] = {}
    offset = 0
    for model in models:
        folded = fold_transposes(model)
        for value in filter(is_weight, model.graph.initializers.values()):
            assert value.name is not None
            assert value.dtype in {*FLOATS, *BITS}
            name = value.name.removeprefix(prefix)
            transposed = value.name in folded
            if name in layout:
                assert layout[name].transposed == transposed, f"{name} is used in two layouts"
                continue
            assert isinstance(value.const_value, ir.ExternalTensor)
            length = int(value.const_value.length or 0)
            layout[name] = Place(offset, length, transposed, value.dtype)
            offset += -(-length // ALIGNMENT) * ALIGNMENT
    return layout


def bind(model: ir.Model, layout: Mapping[str, Place], prefix: str, location: str) -> None:
    """Point the model's weights at their places in the file `location`, relative to the graph."""
    for value in list(filter(is_weight, model.graph.initializers.values())):
        assert value.name is not None
        value.name = value.name.removeprefix(prefix)
        value.const_value = weight_reference(value, location, layout[value.name].offset)


def write(path: Path, layout: Mapping[str, Place], source: Source) -> None:
    """Write the weights, each as it is to be stored. Raises CheckpointError for values that are non-finite so."""
    with path.open("wb", buffering=0) as file:
        for name, place in layout.items():
            if name.startswith(ZEROS):
                write_at(file, place.offset, zero_points(place))
            elif place.dtype in BITS:
                write_blocks(file, name, rows_of(source(name)), place, layout[name + SCALES])
            elif not name.endswith(SCALES):
                write_floats(file, name, rows_of(source(name)), place)
        end = max(place.offset + place.length for place in layout.values())
        file.truncate(end)


def write_floats(file: FileIO, name: str, rows: Rows, place: Place) -> None:
    row = math.prod(rows.shape[1:]) * place.dtype.itemsize
    for first, block in rows.blocks():
        values = finite(name, block, FLOATS[place.dtype])
        if place.transposed:
            write_columns(file, place.offset, values.t(), first, rows.count)
        else:
            write_at(file, place.offset + int(first * row), bytes_of(values))


def write_blocks(file: FileIO, name: str, rows: Rows, codes: Place, scales: Place) -> None:
    """Quantise a matrix as its rows come."""
    bits, count = BITS[codes.dtype], scales.length // 4 // rows.count
    for first, block in rows.blocks():
        values = finite(name, block, torch.float32).numpy()
        made, scale = quantized(values, bits, rows.shape[1] // count)
        stored = packed(made, bits)
        write_at(file, codes.offset + codes.length // rows.count * first, stored.reshape(-1))
        write_at(file, scales.offset + scales.length // rows.count * first, scale.reshape(-1).view(np.uint8))


def zero_points(place: Place) -> NDArray[np.uint8]:
    """As many as fill the place."""
    bits = BITS[place.dtype]
    return np.full(place.length, zero_point(bits) | (zero_point(bits) << 4 if bits == 4 else 0), np.uint8)


def finite(name: str, block: Tensor, dtype: torch.dtype) -> Tensor:
    """A block in that type. Raises CheckpointError for values that it does not hold."""
    values = block.detach().to(dtype)
    if torch.isfinite(values).all():
        return values
    if dtype == torch.float16 and torch.isfinite(block).all():
        raise CheckpointError(f"tensor {name} reaches beyond 65504, the largest of fp16: use --precision bf16")
    raise CheckpointError(f"tensor {name} holds non-finite values: the checkpoint is damaged")


def write_columns(file: FileIO, offset: int, columns: Tensor, first: int, width: int) -> None:
    """Write columns of a matrix of `width`, which lies at `offset` row by row: all of it at once, or a part a row."""
    if columns.shape[1] == width:
        write_at(file, offset, bytes_of(columns))
        return
    columns = columns.clone(memory_format=torch.contiguous_format)
    for row, part in enumerate(columns):
        write_at(file, offset + (row * width + first) * columns.itemsize, bytes_of(part))


def bytes_of(values: Tensor) -> NDArray[np.uint8]:
    if values.dim() and values.stride(-1) != 1:  # also of a single column, which counts as contiguous
        values = values.clone(memory_format=torch.contiguous_format)
    return values.contiguous().flatten().view(torch.uint8).numpy()


def write_at(file: FileIO, offset: int, values: NDArray[np.uint8]) -> None:
    file.seek(offset)
    left = memoryview(values.data)
    while left:  # the system writes at most 2 GiB at once
        left = left[file.write(left) :]
