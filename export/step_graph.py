"""Traces a decoder into the step graph: one call is one decoding step over bound caches, sampler included."""

from __future__ import annotations

from functools import lru_cache

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from arforge.export import sampler
from arforge.export.trace import trace
from arforge.runner.backends.onnxruntime_engine import cache_names


class StepGraph(nn.Module):
    """A decoder with the sampler behind it; caches come as key, value, key, value, …"""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        write_index: Tensor,
        mask: Tensor,
        uniforms: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        caches: list[Tensor],
        query_positions: Tensor | None = None,
    ) -> list[Tensor]:
        pairs = list(zip(caches[0::2], caches[1::2], strict=True))
        asked: tuple[Tensor, ...] = ()
        if query_positions is not None:  # queries see what the last input sees: everything that is known
            asked = (query_positions, mask[:, :, -1:].expand(-1, -1, query_positions.shape[1], -1))
        logits, written = self.decoder(tokens, positions, mask, *asked, write_index, pairs)
        drawn, guided = sampler.sample(logits, uniforms, guidance, temperature, top_k, top_p)
        return [drawn, guided, *(tensor for pair in written for tensor in pair)]


def without_logits(model: ir.Model) -> ir.Model:
    """A copy of a traced step that does not give its logits: what an engine runs."""
    lean = model.clone()
    lean.graph.outputs.remove(next(value for value in lean.graph.outputs if value.name == "logits"))
    return lean


def trace_step(decoder: nn.Module, caches: int, kv_heads: int, head_size: int, queries: bool = False) -> ir.Model:
    """Trace `decoder`, whose parameters are fake tensors, with all of rows, images, width, slots and queries free.

    Inputs and outputs are those of the design's step graph, and `top_k` int64 [1], `top_p` float32 [1]. Cache
    outputs are called `new_…`, since ONNX names a value once; bind them to the memory of the inputs.
    """
    rows, images, width, slots = (torch.export.Dim(n) for n in ("rows", "images", "width", "slots"))
    outputs = torch.export.Dim("queries") if queries else width
    long, r, b, q, s = torch.int64, 4, 2, 3, 17
    k = 5 if queries else q
    names = cache_names(caches)
    inputs = {
        "tokens": (torch.zeros(r, q, dtype=long), {0: rows, 1: width}),
        "positions": (torch.zeros(r, q, dtype=long), {0: rows, 1: width}),
        "write_index": (torch.zeros(r, dtype=long), {0: rows}),
        "mask": (torch.zeros(r, 1, q, s, dtype=torch.bool), {0: rows, 2: width, 3: slots}),
        "uniforms": (torch.zeros(b, k), {0: images, 1: outputs}),
        "guidance": (torch.zeros(1), None),
        "temperature": (torch.zeros(1), None),
        "top_k": (torch.zeros(1, dtype=long), None),
        "top_p": (torch.zeros(1), None),
    }
    memory = [torch.zeros(r, kv_heads, s, head_size) for _ in names]
    args = [*(tensor for tensor, _ in inputs.values()), memory]
    dims = [*(dim for _, dim in inputs.values()), [{0: rows, 2: slots} for _ in memory]]
    input_names = [*inputs, *names]
    if queries:
        args.append(torch.zeros(r, k, dtype=long))
        dims.append({0: rows, 1: outputs})
        input_names.append("query_positions")
    output_names = ["next_tokens", "logits", *(f"new_{name}" for name in names)]
    model = trace(StepGraph(decoder), tuple(args), tuple(dims), input_names, output_names)
    splice_filter(model)
    return model


class FilterGraph(nn.Module):
    """Top-k and top-p alone."""

    def forward(self, logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
        return sampler.filtered(logits, top_k, top_p)


@lru_cache(maxsize=4)
def trace_filter(vocabulary: int) -> ir.Model:
    """Traced for one image and output, which is quicker; the operations broadcast over any number."""
    args = (torch.zeros(1, 1, vocabulary), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    model = trace(FilterGraph(), args, (None, None, None), ["logits", "top_k", "top_p"], ["kept"])
    for value in (value for node in model.graph for value in node.outputs):
        value.shape = None
    return model


def splice_filter(model: ir.Model) -> None:
    """Replace the sampler's placeholder by an If: the filter's graph, or nothing."""
    placeholder = next(node for node in model.graph if node.op_type == sampler.PLACEHOLDER)
    wanted, logits, *limits = placeholder.inputs
    assert logits is not None
    assert logits.shape is not None
    vocabulary = logits.shape[-1]
    assert isinstance(vocabulary, int)
    with unset_fake_temporarily():
        then = trace_filter(vocabulary).clone().graph
    for inner, outer in zip(list(then.inputs), (logits, *limits), strict=True):
        assert outer is not None
        inner.replace_all_uses_with(outer)
    then.inputs.clear()
    then.name = "filtered"
    for value in [*then.initializers.values(), *(value for node in then for value in node.outputs)]:
        value.name = f"filter.{value.name}"
    same = ir.Node(
        "", "Identity", [logits], outputs=[ir.Value(name="filter.off", shape=logits.shape, type=logits.type)]
    )
    otherwise = ir.Graph([], same.outputs, nodes=[same], name="unfiltered")
    branches = [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", otherwise)]
    kept = ir.Value(name="kept_logits", shape=logits.shape, type=logits.type)
    model.graph.insert_before(placeholder, ir.Node("", "If", [wanted], branches, outputs=[kept]))
    placeholder.outputs[0].replace_all_uses_with(kept)
    model.graph.remove(placeholder, safe=True)
    del model.opset_imports[sampler.PLACEHOLDER_DOMAIN]
