"""Traces a decoder into the step graph: one call is one decoding step over bound caches, sampler included."""

from __future__ import annotations

from functools import lru_cache

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from arforge.export import sampler
from arforge.export.noise import KEPT_LOGITS
from arforge.export.trace import trace
from arforge.runner.bundle import ClassCondition, ModelFacts
from arforge.runner.step_graph import cache_names, contract

SAMPLE = {"rows": 4, "images": 2, "width": 3, "queries": 5, "slots": 17, "condition": 7}  # all of them differ


class StepGraph(nn.Module):
    """A decoder with the sampler behind it; inputs and outputs are those of `step-logits`, in the contract's order."""

    def __init__(self, decoder: nn.Module, model: ModelFacts) -> None:
        super().__init__()
        self.decoder, self.caches = decoder, cache_names(model.caches)
        self.names = [tensor.name for tensor in contract(model, "step-logits").inputs]

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self.names, tensors, strict=True))
        memory = [given[name] for name in self.caches]
        pairs = list(zip(memory[0::2], memory[1::2], strict=True))
        mask = given["mask"]
        asked: tuple[Tensor, ...] = ()
        if "query_positions" in given:  # queries see what the last input sees: everything that is known
            positions = given["query_positions"]
            asked = (positions, mask[:, :, -1:].expand(-1, -1, positions.shape[1], -1))
        prompt = {"condition": given["condition"]} if "condition" in given else {}
        logits, written = self.decoder(
            given["tokens"], given["positions"], mask, *asked, given["write_index"], pairs, **prompt
        )
        drawn, guided = sampler.sample(
            logits, *(given[name] for name in ("uniforms", "guidance", "temperature", "top_k", "top_p"))
        )
        return [drawn, guided, *(tensor for pair in written for tensor in pair)]


def trace_condition(module: nn.Module, model: ModelFacts) -> ir.Model:
    """Trace what makes rows of a condition, for any number of prompts of one length."""
    wanted = contract(model, "condition")
    assert not isinstance(model.condition, ClassCondition)
    free = {0: torch.export.Dim("prompts"), 1: torch.export.Dim("length", max=model.condition.slots)}
    (given,) = wanted.inputs
    prompts = torch.zeros(given.sizes({"prompts": 2, "length": 3}), dtype=getattr(torch, given.dtype))
    return trace(module, (prompts,), (free,), [given.name], [tensor.name for tensor in wanted.outputs])


def trace_step(decoder: nn.Module, model: ModelFacts) -> ir.Model:
    """Trace `decoder`, whose parameters are fake tensors, as `step-logits`; what the contract names stays free."""
    wanted = contract(model, "step-logits")
    free = {name: torch.export.Dim(name) for name in SAMPLE}
    args = [torch.zeros(tensor.sizes(SAMPLE), dtype=getattr(torch, tensor.dtype)) for tensor in wanted.inputs]
    dims = [
        {axis: free[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in wanted.inputs
    ]
    names = [[tensor.name for tensor in part] for part in (wanted.inputs, wanted.outputs)]
    traced = trace(StepGraph(decoder, model), (args,), (dims,), *names)
    splice_filter(traced)
    return traced


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
    kept = ir.Value(name=KEPT_LOGITS, shape=logits.shape, type=logits.type)
    model.graph.insert_before(placeholder, ir.Node("", "If", [wanted], branches, outputs=[kept]))
    placeholder.outputs[0].replace_all_uses_with(kept)
    model.graph.remove(placeholder, safe=True)
    del model.opset_imports[sampler.PLACEHOLDER_DOMAIN]
