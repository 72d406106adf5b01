"""Looks into graph files that somebody else wrote, before a runtime maps what they point at.

A graph names its weights by file, offset and length. Runtimes differ in what they check of that; here each must lie
inside a file that the manifest lists, be as long as its type and shape ask for, and share all its bytes with another
or none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
import onnx_ir as ir

from arforge.export.stored_values import stored_values
from arforge.runner.bundle import Bundle
from arforge.runner.errors import VerificationError

SCALED = {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMulNBits": 2, "MatMulIntegerToFloat": 3}
"""The input that holds scales, of activations or weights, by operator."""
Region = tuple[int, int]  # first byte, end


def check_graphs(bundle: Bundle, paths: list[str]) -> None:
    """Raise VerificationError for a graph that reads outside its data, or whose scales are no scales.

    `paths`: graphs of the bundle. They share weights, so the same region may be used again; a part of one may not.
    """
    regions: dict[str, dict[Region, str]] = defaultdict(dict)
    for path in paths:
        try:
            model = ir.load(bundle.path(path))
        except Exception as error:  # protobuf's and onnx-ir's share no narrower base
            raise VerificationError(f"{bundle.path(path)} is not an ONNX graph ({error}): export it again") from error
        for name, tensor in stored(model):
            place = location(bundle, path, name, tensor)
            offset, length = tensor.offset or 0, tensor.length
            size = bundle.files[place].bytes
            needed = math.ceil(math.prod(tensor.shape.numpy()) * tensor.dtype.bitwidth / 8)
            if length is None or length != needed or offset < 0 or offset + length > size:
                raise VerificationError(
                    f"{path}: {name} needs {needed} bytes and takes {length} from byte {offset} of {place}, which has "
                    f"{size}: export the bundle again"
                )
            if length:
                regions[place][offset, offset + length] = name
        check_scales(path, model)
    for place, found in regions.items():
        ordered = sorted(found)
        for one, other in pairwise(ordered):
            if other[0] < one[1]:
                names = f"{found[one]} and {found[other]}"
                raise VerificationError(f"{place}: {names} share some bytes: export the bundle again")


def stored(model: ir.Model) -> Iterator[tuple[str, ir.ExternalTensor]]:
    """Tensors that lie outside the graph file, those of its branches and attributes included."""
    graphs = [model.graph, *(graph for node in model.graph.all_nodes() for graph in subgraphs(node))]
    for graph in graphs:
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield name, value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                yield f"{node.name}.{attribute.name}", attribute.value


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value


def location(bundle: Bundle, path: str, name: str, tensor: ir.ExternalTensor) -> str:
    """The bundle's path of a tensor's file. Raises VerificationError unless it is one of the bundle's."""
    place = (PurePosixPath(path).parent / str(tensor.location)).as_posix()
    if place not in bundle.files:
        raise VerificationError(f"{path}: {name} lies in {str(tensor.location)!r}, which is no file of the bundle")
    return place


def check_scales(path: str, model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        index = SCALED.get(node.op_type)
        value = node.inputs[index] if index is not None and len(node.inputs) > index else None
        if value is None or value.const_value is None:
            continue
        scales = stored_values(value.const_value).astype(np.float32)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise VerificationError(
                f"{path}: scale {value.name} is not a positive number: calibrate or build int8 again"
            )
