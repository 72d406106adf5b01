"""What a built engine does with its caches: bytes that it copies, and whether reading by views keeps the order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from arforge.engines.tensorrt_layers import Layer, attention_kernels, is_product
from arforge.runner.step_graph import cache_names, view_name, written_name

BYTES = {"Float": 4, "Half": 2, "BFloat16": 2}  # of a number of a cache, by the library's names of types


@dataclass(frozen=True)
class Reader:
    """An attention that reads two caches by views: the name of its last product, and the caches."""

    product: str
    caches: tuple[str, str]


def readers(model: ir.Model, caches: int) -> list[Reader]:
    """The attentions of a lowered graph whose caches have views; none of another."""
    views = {view_name(name): name for name in cache_names(caches)}

    def read_by(value: ir.Value | None) -> str | None:
        """The cache that a factor is the turned view of."""
        turned = value.producer() if value is not None else None
        source = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
        return None if source is None else views.get(str(source.name))

    products = [
        (node, cache) for node in model.graph if node.op_type == "MatMul" and (cache := read_by(node.inputs[1]))
    ]
    return [
        Reader(str(last.name), (key, value))
        for (_, key), (last, value) in zip(products[::2], products[1::2], strict=True)
    ]


def check_views(layers: Sequence[Layer], wanted: Sequence[Reader], profiles: int) -> list[str]:
    """What is not as reading by views needs it, in words; empty where all is well.

    TensorRT does not know that a view is its cache. So each attention must be one kernel, which reads both views, and
    both caches must be updated before it: earlier in the list, on the same stream, and by what it is made to wait for.
    """
    if not wanted:
        return []
    if not layers:
        return ["the library lists no layers, so that the order of update and attention is not known"]
    return [
        f"profile {profile}: {problem}"
        for profile in range(profiles)
        for problem in check_profile([layer for layer in layers if layer.profile == profile], wanted)
    ]


def check_profile(layers: Sequence[Layer], wanted: Sequence[Reader]) -> list[str]:
    problems = []
    names = {view_name(cache) for reader in wanted for cache in reader.caches}
    kernels = attention_kernels(layers)
    for layer in layers:
        seen = [tensor.name for tensor in (*layer.inputs, *layer.outputs) if tensor.name in names]
        if seen and layer not in kernels:
            problems.append(f"{layer.name}, which is no attention kernel, reads {seen[0]}")
    for reader in wanted:
        mine = attention_kernels(layers, (reader.product,))
        if len(mine) != 1:
            problems.append(f"attention {reader.product} is not one kernel")
            continue
        problems += [problem for cache in reader.caches if (problem := check_order(layers, mine[0], cache))]
    return problems


def check_order(layers: Sequence[Layer], kernel: Layer, cache: str) -> str | None:
    """What is wrong with the order in which `cache` is updated and the attention `kernel` reads it."""
    updated, place = written_name(cache), layers.index(kernel)
    if not any(tensor.name == view_name(cache) for tensor in kernel.inputs):
        return f"{kernel.name} does not read {view_name(cache)}"
    writers = [index for index, layer in enumerate(layers) if any(t.name == updated for t in layer.outputs)]
    if not writers or max(writers) > place:
        return f"{kernel.name} reads {view_name(cache)} before {updated} is written"
    if any(layers[index].stream != kernel.stream for index in writers):
        return f"{kernel.name} reads {view_name(cache)} on another stream than writes {updated}"
    if updated not in needed(layers[:place], kernel):
        return f"{kernel.name} does not wait for {updated}"
    return None


def needed(before: Sequence[Layer], kernel: Layer) -> set[str]:
    """All tensors that a kernel's inputs are made of, themselves among them."""
    found = {tensor.name for tensor in kernel.inputs}
    for layer in reversed(before):
        if any(tensor.name in found for tensor in layer.outputs):
            found |= {tensor.name for tensor in layer.inputs}
    return found


def copied_bytes(layers: Sequence[Layer], caches: Collection[str], profiles: int) -> list[int]:
    """For each profile, the bytes of caches that a step writes once more, in another order or type."""
    return [copied([layer for layer in layers if layer.profile == profile], caches) for profile in range(profiles)]


def copied(layers: Sequence[Layer], caches: Collection[str]) -> int:
    """A copy: what a kernel, no attention or product, makes of a cache alone, or of a copy, number for number."""
    own = {named(name) for name in caches for named in (str, written_name, view_name)}
    sources, total = set(own), 0
    for layer in layers:
        given = [tensor for tensor in layer.inputs if tensor.name in sources]
        alone = len(given) == len(layer.inputs) or any(tensor.name in own for tensor in layer.outputs)
        if not given or not alone or is_product(layer) or attention_kernels((layer,)):
            continue
        size = max(prod(tensor.shape) for tensor in given)
        for tensor in layer.outputs:
            if tensor.name not in own and prod(tensor.shape) == size:
                sources.add(tensor.name)
                total += size * BYTES[tensor.dtype]
    return total
