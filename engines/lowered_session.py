"""A graph that was lowered for TensorRT on ONNX Runtime's CPU provider, which takes less than TensorRT does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from arforge.runner.backends.onnxruntime_session import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


# The library puts a product and its blocks of 4 bits together, and would round the other factor to 8 bits for that.
FLOAT_PRODUCTS = {"session.qdq_matmulnbits_accuracy_level": "1"}


def runnable(model: ir.Model) -> bytes:
    """A lowered graph, which is changed, as ONNX Runtime takes it.

    Its quantizers want scales and values of one type, so casts come between: as the standard has it, a quotient is of
    the scale's type, float32; so is a product here, rounded once.
    """
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            wide = ir.Node("", "Cast", [node.inputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)])
            model.graph.insert_before(node, wide)
            node.replace_input_with(0, wide.outputs[0])
        elif node.op_type == "DequantizeLinear" and (kind := node.attributes.pop("output_dtype", None)):
            narrow = ir.Node("", "Cast", [node.outputs[0]], [ir.AttrInt64("to", kind.as_int())])
            node.outputs[0].replace_all_uses_with(narrow.outputs[0])
            narrow.replace_input_with(0, node.outputs[0])
            model.graph.insert_after(node, narrow)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def session_of(model: ir.Model, folder: Path) -> InferenceSession:
    """Of a lowered graph, which is changed, whose weights lie in `folder`."""
    return open_session(folder / "lowered.onnx", 1, runnable(model), settings=FLOAT_PRODUCTS)
