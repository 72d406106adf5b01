"""Compares a bundle's step graph with the torch module it was traced from, on the real steps of a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from arforge.export import llamagen
from arforge.export.checkpoint import open_checkpoint
from arforge.export.llamagen import LlamaGen, LlamaGenConfig
from arforge.export.sampler import guide
from arforge.runner.bundle import Bundle
from arforge.runner.errors import VerificationError
from arforge.runner.onnxruntime_engine import cache_names, open_session
from arforge.runner.plan import make_plan

TOLERANCE = 1e-3  # of logits, relative to the largest


@dataclass(frozen=True)
class Agreement:
    steps: int
    largest_error: float  # of guided logits, relative to the largest logit
    same_tokens: float  # share of sampled cells with the same likeliest token


def load_module(bundle: Bundle, precision: str = "fp32") -> LlamaGen:
    """The torch module with the weights that the bundle stores."""
    config = bundle.model.config
    module = LlamaGen(LlamaGenConfig(**{**config, "grid": tuple(config["grid"])})).eval()
    stored = stored_weights(bundle.graph("step-logits", precision))
    module.load_state_dict({name: stored[name] for name in module.state_dict()})
    return module


def stored_weights(graph: Path) -> dict[str, torch.Tensor]:
    """A graph's weights by parameter name, in the module's layout: matrix factors are stored transposed."""
    model = onnx.load(graph)
    factors = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: torch.from_numpy((a.T if name in factors else a).copy()) for name, a in arrays.items()}


def check_weights(bundle: Bundle, checkpoint: Path, precision: str = "fp32") -> int:
    """Raise VerificationError unless the stored weights are the checkpoint's; returns how many there are."""
    source = open_checkpoint(checkpoint)
    stored = stored_weights(bundle.graph("step-logits", precision))
    names = list(load_module(bundle, precision).state_dict())
    for name in names:
        if not torch.equal(stored[name], llamagen.parameter(source, name).to(torch.float32)):
            raise VerificationError(f"weight {name} of {bundle.root} differs from {checkpoint}: export it again")
    return len(names)


@torch.no_grad()
def compare_logits(bundle: Bundle, schedule: str, max_steps: int, guidance: float = 2.0) -> Agreement:
    """Run graph and module side by side, greedily, each on its own caches; raise VerificationError where they part."""
    module = load_module(bundle)
    session = open_session(bundle.graph("step-logits", "fp32"), threads=None)
    plan = make_plan(bundle.schedule(schedule), widths=None)
    classes = np.array([0, bundle.model.classes - 1], dtype=np.int64)
    rows = 2 * len(classes)
    known = plan.known(bundle.model, classes, rows)
    names = cache_names(bundle.model.layers)
    shape = (rows, bundle.model.kv_heads, plan.slots, bundle.model.head_size)
    graph_caches: dict[str, Any] = {name: np.zeros(shape, np.float32) for name in names}
    caches = module.empty_caches(rows, plan.slots)
    largest, same, cells = 0.0, 0, 0
    for step in plan.steps[:max_steps]:
        tokens = known[:, step.columns]
        positions = np.broadcast_to(step.positions, tokens.shape).copy()
        write_index = np.full(rows, step.write_index, np.int64)
        mask = np.broadcast_to(step.mask, (rows, 1, *step.mask.shape)).copy()
        scale = np.array([1 + (guidance - 1) * step.guidance], np.float32)
        inputs = {
            "tokens": tokens,
            "positions": positions,
            "write_index": write_index,
            "mask": mask,
            "uniforms": np.zeros((len(classes), step.width), np.float32),
            "guidance": scale,
            "temperature": np.zeros(1, np.float32),
            "top_k": np.zeros(1, np.int64),
            "top_p": np.ones(1, np.float32),
        }
        drawn, found, *written = session.run(None, {**inputs, **graph_caches})
        graph_caches = dict(zip(names, written, strict=True))
        arrays = (tokens, positions, mask, write_index)
        logits, caches = module(*(torch.from_numpy(array) for array in arrays), caches)
        expected = guide(logits, len(classes), torch.from_numpy(scale)).numpy()
        picked = (slice(None), step.target_rows)
        if len(step.target_rows):
            error = np.abs(found[picked] - expected[picked]).max() / np.abs(expected[picked]).max()
            largest = max(largest, float(error))
            same += int((found[picked].argmax(-1) == expected[picked].argmax(-1)).sum())
            cells += found[picked].shape[0] * len(step.target_rows)
        known[:, step.target_cells] = np.tile(drawn[picked], (2, 1))
    agreement = Agreement(min(max_steps, len(plan.steps)), largest, same / max(1, cells))
    if not agreement.largest_error <= TOLERANCE:
        raise VerificationError(
            f"schedule {schedule}: the graph's logits differ from the torch module's by {largest:.2e} of the largest, "
            f"allowed is {TOLERANCE:.0e}: export the bundle again"
        )
    return agreement
