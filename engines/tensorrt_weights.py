"""Whether an engine holds weights of 4 bits as such: by the numbers that its products read, and by its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from arforge.engines.tensorrt_layers import Layer, is_int4_product

KERNEL_BYTES = 1 << 17
"""What a layer of the list may add to an engine beside weights; 24 to 80 KB were seen (tensorrt-rtx 1.7.1)."""


@dataclass(frozen=True)
class Weights:
    """Of a lowered graph."""

    bytes: int  # of all, as they are stored
    narrow: int  # numbers of 4 bits

    def __str__(self) -> str:
        codes, plain = self.narrow // 2, self.bytes + 3 * self.narrow // 2
        return f"weights of {self.bytes} bytes, {codes} of them codes of 4 bits ({plain} if these were float16)"


def weights_of(model: ir.Model) -> Weights:
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    narrow = sum(prod(tensor.shape.numpy()) for tensor in tensors if tensor.dtype == ir.DataType.INT4)
    return Weights(sum(tensor.nbytes for tensor in tensors), narrow)


def check_weights(layers: Sequence[Layer], engine_bytes: int, weights: Weights, profiles: int) -> list[str]:
    """What is not as it should be, in words; empty where all is well, and where no weights have 4 bits.

    In each profile products read every number of 4 bits, once, and nothing has been made of them beside: else the
    engine would be larger than its weights and what kernels take.
    """
    if not weights.narrow:
        return []
    problems = []
    for profile in range(profiles):
        mine = [layer for layer in layers if layer.profile == profile and is_int4_product(layer)]
        constants = (tensor for layer in mine for tensor in layer.constants if tensor.dtype == "Int4")
        read = sum({tensor.name: prod(tensor.shape) for tensor in constants}.values())
        if read != weights.narrow:
            numbers = f"{read} numbers of 4 bits, the graph has {weights.narrow}"
            problems.append(f"profile {profile}: products read {numbers}")
    most = weights.bytes + KERNEL_BYTES * len(layers)
    if engine_bytes > most:
        problems.append(f"the engine has {engine_bytes} bytes, at most {most} are expected of {weights}")
    return problems
