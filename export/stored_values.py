"""Reads the values of a graph's tensors, from its file or from the weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from arforge.runner.bundle.files import inside


def stored_values(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """The tensor's values, mapped where they lie in a file of their own.

    Raises PathError for a file outside of the graph's folder.
    """
    if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir:
        path = inside(Path(tensor.base_dir), str(tensor.location))
        # Without a folder, onnx-ir reads what it is given, hard links too.
        tensor = ir.ExternalTensor(
            path, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(tensor.name)
        )
    return tensor.numpy()
