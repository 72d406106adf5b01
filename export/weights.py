"""Streams weights into one external-data file that all graphs of a precision share.

Tensors pass in blocks of rows, so an export's peak is a few such blocks and what tracing takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from arforge.export.rows import Values, rows_of
from arforge.export.trace import fold_transposes, is_weight, weight_reference
from arforge.runner.errors import CheckpointError

ALIGNMENT = 4096  # lets a runtime map a tensor straight from the file

Source = Callable[[str], Values]

TYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.BFLOAT16: torch.bfloat16}
"""What weights are stored as, by their type in a graph."""


@dataclass(frozen=True)
class Place:
    offset: int
    length: int
    transposed: bool  # stored as the transpose of the module's parameter
    dtype: torch.dtype = torch.float32


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
            assert value.dtype in TYPES
            name = value.name.removeprefix(prefix)
            transposed = value.name in folded
            if name in layout:
                assert layout[name].transposed == transposed, f"{name} is used in two layouts"
                continue
            assert isinstance(value.const_value, ir.ExternalTensor)
            length = int(value.const_value.length or 0)
            layout[name] = Place(offset, length, transposed, TYPES[value.dtype])
            offset += -(-length // ALIGNMENT) * ALIGNMENT
    return layout


def bind(model: ir.Model, layout: Mapping[str, Place], prefix: str, location: str) -> None:
    """Point the model's weights at their places in the file `location`, relative to the graph."""
    for value in list(filter(is_weight, model.graph.initializers.values())):
        assert value.name is not None
        value.name = value.name.removeprefix(prefix)
        value.const_value = weight_reference(value, location, layout[value.name].offset)


def write(path: Path, layout: Mapping[str, Place], source: Source) -> None:
    """Write the weights, each in its type. Raises CheckpointError for values that are non-finite in it."""
    with path.open("wb", buffering=0) as file:
        for name, place in layout.items():
            rows = rows_of(source(name))
            for first, block in rows.blocks():
                values = block.detach().to(place.dtype)
                if not torch.isfinite(values).all():
                    raise CheckpointError(f"tensor {name} holds non-finite values: the checkpoint is damaged")
                if place.transposed:
                    write_columns(file, place.offset, values.t().contiguous(), first, rows.count)
                else:
                    file.seek(place.offset + first * math.prod(rows.shape[1:]) * place.dtype.itemsize)
                    write_all(file, values.contiguous())
        end = max(place.offset + place.length for place in layout.values())
        file.truncate(end)


def write_columns(file: FileIO, offset: int, columns: Tensor, first: int, width: int) -> None:
    """Write columns of a matrix of `width`, which lies at `offset` row by row: all of it at once, or a part a row."""
    if columns.shape[1] == width:
        file.seek(offset)
        write_all(file, columns)
        return
    for row, part in enumerate(columns):
        file.seek(offset + (row * width + first) * columns.itemsize)
        write_all(file, part)


def write_all(file: FileIO, values: Tensor) -> None:
    left = values.flatten().view(torch.uint8).numpy().data
    while left:  # the system writes at most 2 GiB at once
        left = left[file.write(left) :]
