"""The layers of a step graph that can be quantised: products with a stored matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from arforge.runner.errors import CalibrationError


@dataclass(frozen=True)
class Layer:
    """`activation` @ `weight`. Attention's own products have no stored factor and are none."""

    name: str  # the weight's, without its ending
    node: str
    activation: str
    weight: str  # float32 [inputs, outputs]
    inputs: int
    outputs: int

    @property
    def bytes_saved(self) -> int:
        """Of storage, by int8 in place of float32; the scales are float32."""
        return 3 * self.inputs * self.outputs - 4 * self.outputs


def find_layers(graph: onnx.GraphProto) -> list[Layer]:
    """The graph's layers in order. Raises CalibrationError if there is none."""
    matrices = {
        tensor.name: (tensor.dims[0], tensor.dims[1])
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    layers = [
        Layer(node.input[1].removesuffix(".weight"), node.name, node.input[0], node.input[1], *matrices[node.input[1]])
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices
    ]
    if not layers:
        raise CalibrationError(f"the graph {graph.name} has no product with a stored matrix: it is not a step graph")
    return layers


def activations(layers: Sequence[Layer]) -> dict[str, int]:
    """The tensors that the layers read, each once, and their channels."""
    return {layer.activation: layer.inputs for layer in layers}


def select(layers: Sequence[Layer], patterns: Sequence[str]) -> frozenset[str]:
    """The names of the layers that shell patterns such as `output` or `layers.0.*` match.

    Raises CalibrationError for a pattern that matches none, and where no layer is left out.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {layer.name for layer in layers if fnmatchcase(layer.name, pattern)}
        if not found:
            raise CalibrationError(
                f"no layer is called {pattern!r}: the layers are {layers[0].name}, … {layers[-1].name}; "
                f"{layers[0].name.rsplit('.', 1)[0]}.* matches several"
            )
        chosen |= found
    if len(chosen) == len({layer.name for layer in layers}):
        raise CalibrationError("every layer is excluded: there is nothing to quantise")
    return frozenset(chosen)
