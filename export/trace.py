"""From a torch module to a lean ONNX model whose weights are names, not values.

Modules are traced with fake parameters, so tracing costs no memory whatever the model's size; the values are
streamed to the weights file later (`weights.py`).
"""

from __future__ import annotations

import gc
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arforge.version import VERSION

OPSET = 24


def fake_module(build: Callable[[], nn.Module]) -> tuple[nn.Module, FakeTensorMode]:
    """Build a module whose tensors have shapes and types but no values."""
    mode = FakeTensorMode()
    with mode:
        return build().eval(), mode


def trace(
    module: nn.Module,
    args: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> ir.Model:
    """Trace `module` to opset 24. Initializers named as the module's parameters and buffers carry no value."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every library that it does not find
    with rare_collections(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return tidy(program.model)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for unreachable cycles less often: the tracer makes so many objects that a tenth of its time goes there."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def tidy(model: ir.Model) -> ir.Model:
    """Fold what is constant, with the weights held aside as inputs so that nothing looks at their values."""
    weights = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    for value in weights:
        value.const_value = None
    model.graph.inputs.extend(weights)
    onnxscript.optimizer.optimize_ir(model)
    constant_reshapes(model)
    ir.passes.PassManager([CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()])(model)
    strip_traces(model)
    del model.graph.inputs[len(model.graph.inputs) - len(weights) :]
    for value in weights:
        value.const_value = weight_reference(value, location="", offset=0)
        model.graph.register_initializer(value)
    return model


def strip_traces(model: ir.Model) -> None:
    """Drop the tracer's notes: stack traces with local paths, many times the size of the graph itself."""
    model.producer_name, model.producer_version = "arforge", VERSION
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        node.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values.extend(value for node in nodes for value in node.outputs)
    notes = [model.metadata_props, model.graph.metadata_props]
    notes.extend(node.metadata_props for node in nodes)
    notes.extend(value.metadata_props for value in values)
    for note in notes:
        note.clear()


def weight_reference(value: ir.Value, location: str, offset: int) -> ir.ExternalTensor:
    """A weight by its place in a file."""
    assert value.dtype is not None
    assert value.shape is not None
    assert value.name is not None
    length = int(math.prod(value.shape.numpy()) * value.dtype.itemsize)
    return ir.ExternalTensor(location, offset, length, value.dtype, shape=value.shape, name=value.name)


def is_weight(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def constant_reshapes(model: ir.Model) -> bool:
    """Give each Reshape a constant target where its dimensions allow.

    A dimension that equals the input's at the same place becomes 0 ("copy"), and one further unknown -1. Shapes
    with more unknowns are left. Returns whether anything changed.
    """
    changed = False
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Reshape" else None
        if source is None or source.shape is None or node.outputs[0].shape is None:
            continue
        given = list(source.shape)
        target = [
            dim if isinstance(dim, int) else 0 if index < len(given) and dim == given[index] else -1
            for index, dim in enumerate(node.outputs[0].shape)
        ]
        if target.count(-1) > 1 or 0 in node.outputs[0].shape:
            continue
        name = f"{node.outputs[0].name}_target"
        constant = ir.Value(name=name, const_value=ir.tensor(target, dtype=ir.DataType.INT64, name=name))
        model.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        changed = True
    return changed


def fold_transposes(model: ir.Model) -> set[str]:
    """Drop each Transpose of a matrix weight; returns the names of the weights to store transposed.

    A weight is folded only where every use of it is such a Transpose.
    """
    folded = set()
    for weight in list(model.graph.initializers.values()):
        uses = [use.node for use in weight.uses()]
        if not is_weight(weight) or not uses or any(node.op_type != "Transpose" for node in uses):
            continue
        assert weight.shape is not None
        assert len(weight.shape) == 2
        for node in uses:
            node.outputs[0].replace_all_uses_with(weight)
            model.graph.remove(node, safe=True)
        weight.shape = ir.Shape(reversed(list(weight.shape)))
        weight.const_value = weight_reference(weight, location="", offset=0)
        folded.add(str(weight.name))
    return folded
