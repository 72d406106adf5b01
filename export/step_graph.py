"""Traces a decoder into the step graph: one call is one decoding step over bound caches, sampler included."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn

from arforge.export import sampler
from arforge.export.trace import trace

SCALARS = ("guidance", "temperature", "top_k", "top_p")


class StepGraph(nn.Module):
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
    ) -> list[Tensor]:
        pairs = list(zip(caches[0::2], caches[1::2], strict=True))
        logits, written = self.decoder(tokens, positions, mask, write_index, pairs)
        drawn, guided = sampler.sample(logits, uniforms, guidance, temperature, top_k, top_p)
        return [drawn, guided, *(tensor for pair in written for tensor in pair)]


def without_logits(model: ir.Model) -> ir.Model:
    """A copy of a traced step that does not give its logits: what an engine runs."""
    lean = model.clone()
    lean.graph.outputs.remove(next(value for value in lean.graph.outputs if value.name == "logits"))
    return lean


def trace_step(decoder: nn.Module, layers: int, kv_heads: int, head_size: int) -> ir.Model:
    """Trace `decoder`, whose parameters are fake tensors, with all of rows, images, width and slots free.

    Inputs and outputs are those of the design's step graph, and `top_k` int64 [1], `top_p` float32 [1]. Cache
    outputs are called `new_…`, since ONNX names a value once; bind them to the memory of the inputs.
    """
    rows, images, width, slots = (torch.export.Dim(n) for n in ("rows", "images", "width", "slots"))
    long, r, b, q, s = torch.int64, 4, 2, 3, 17
    cache_names = [f"{kind}_cache_{i}" for i in range(layers) for kind in ("key", "value")]
    inputs = {
        "tokens": (torch.zeros(r, q, dtype=long), {0: rows, 1: width}),
        "positions": (torch.zeros(r, q, dtype=long), {0: rows, 1: width}),
        "write_index": (torch.zeros(r, dtype=long), {0: rows}),
        "mask": (torch.zeros(r, 1, q, s, dtype=torch.bool), {0: rows, 2: width, 3: slots}),
        "uniforms": (torch.zeros(b, q), {0: images, 1: width}),
        "guidance": (torch.zeros(1), None),
        "temperature": (torch.zeros(1), None),
        "top_k": (torch.zeros(1, dtype=long), None),
        "top_p": (torch.zeros(1), None),
    }
    caches = [torch.zeros(r, kv_heads, s, head_size) for _ in cache_names]
    outputs = ["next_tokens", "logits", *(f"new_{name}" for name in cache_names)]
    return trace(
        StepGraph(decoder),
        args=(*(tensor for tensor, _ in inputs.values()), caches),
        dynamic_shapes=(*(dims for _, dims in inputs.values()), [{0: rows, 2: slots} for _ in caches]),
        input_names=[*inputs, *cache_names],
        output_names=outputs,
    )
