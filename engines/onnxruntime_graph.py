"""From a bundle's float32 step graph to the graphs that ONNX Runtime's CPU provider is given.

Norms and attention take the forms that the provider has its faster kernels for. For int8 and int4, products read blocks
of 8 or 4 bits (`onnxruntime_blocks.py`). All else stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from arforge.engines.onnxruntime_attention import ease_attention
from arforge.engines.onnxruntime_blocks import CONTRIB, Choice, by_rule, quantize_products
from arforge.engines.onnxruntime_caches import fold_attention
from arforge.engines.onnxruntime_own import use_own_attention
from arforge.engines.onnxruntime_own_products import draw_tokens, gate_products
from arforge.engines.onnxruntime_rows import quantize_rows
from arforge.export.quantization import BITS
from arforge.export.stored_values import stored_values
from arforge.runner.errors import EngineError


def lower_for_onnxruntime(
    path: Path,
    precision: str,
    narrow: int,
    *,
    shared: bool = False,
    choice: Choice = by_rule,
    rows: bool = False,
    scales: Mapping[str, NDArray[np.float32]] | None = None,
    own_positions: bool = False,
    own: bool = False,
) -> ir.Model:
    """The graph at `path` for "fp32", "int8" or "int4", with queries apart in steps of up to `narrow` tokens.

    `shared`: the graph is to lie beside the source, whose weights it reads, as one for fp32 does; else it has all of
    its own. `choice`: of bits and blocks of matrices that are not stored in any. `rows`, of int8: whole matrices
    in place of blocks. `scales`: of 8-bit caches, for steps whose rows all write to the same slots; `own_positions`: at
    positions of their own. `own`: for arforge's operators, any steps. Raises EngineError for a graph that is none of a
    decoding step.
    """
    model = ir.load(path)
    model.opset_imports[CONTRIB] = 1
    fuse_norms(model)
    if own:
        use_own_attention(model, scales or {})
    elif scales is None:
        ease_attention(model, narrow)
    else:
        fold_attention(model, scales, own_positions=own_positions)
    if precision in BITS:
        if not (quantize_rows(model) if rows else quantize_products(model, precision, choice)):
            raise EngineError(f"{path} has no product with a stored matrix: it is not a step graph")
        if own:
            gate_products(model)
            draw_tokens(model)
        RemoveUnusedNodesPass()(model)
        if not shared:
            take_along(model)
    RemoveUnusedNodesPass()(model)
    return model


def take_along(model: ir.Model) -> None:
    """Have the stored tensors that stay as they were written to the new graph's own file."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.LazyTensor(
                partial(copied, value.const_value), value.const_value.dtype, value.const_value.shape, name=value.name
            )


def share_weights(model: ir.Model, written: Path) -> None:
    """Have a graph read what another graph, which is written, stores outside itself under the same names."""
    for name, value in ir.load(written).graph.initializers.items():
        if name in model.graph.initializers and isinstance(value.const_value, ir.ExternalTensor):
            model.graph.initializers[name].const_value = value.const_value


def copied(source: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(stored_values(source), name=source.name)


def fuse_norms(model: ir.Model) -> int:
    """Make one operator of a residual sum and the norm that reads it. Returns how many."""
    fused = 0
    for norm in [node for node in model.graph if node.op_type == "RMSNormalization"]:
        source, weight = norm.inputs[:2]
        add = source.producer() if source is not None else None
        if add is None or add.op_type != "Add" or norm.attributes.get_int("axis", -1) != -1:
            continue
        kind = ir.TensorType(ir.DataType.FLOAT)
        total, result = (ir.Value(name=f"{node.outputs[0].name}.fused", type=kind) for node in (add, norm))
        new = ir.Node(
            CONTRIB,
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, weight],
            [ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))],
            outputs=[result, ir.Value(name=""), ir.Value(name=""), total],
        )
        model.graph.insert_before(norm, new)
        for old, value in ((norm, result), (add, total)):
            old.outputs[0].replace_all_uses_with(value)
            model.graph.remove(old, safe=True)
        fused += 1
    return fused
