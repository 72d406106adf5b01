"""Reads graphs and the weights beside them: of bundles, whose files may have hard links, which onnx refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from arforge.runner.bundle.files import inside


def load_whole(path: Path) -> onnx.ModelProto:
    """A graph with its weights in memory."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        take_in(tensor, path.parent)
    return model


def values_of(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """The values of a tensor of a graph in `folder`. Raises PathError for a file outside of it."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    take_in(copy, folder)
    return numpy_helper.to_array(copy)


def take_in(tensor: onnx.TensorProto, folder: Path) -> None:
    """Put the values of a tensor into it."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    facts = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(facts.get("offset", 0)), int(facts.get("length", -1))
    data = np.fromfile(inside(folder, facts["location"]), dtype=np.uint8, count=length, offset=offset)
    tensor.raw_data = data.tobytes()
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
