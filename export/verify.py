"""Compares a bundle's step graph with the torch module it was traced from, on the real steps of a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from onnx import numpy_helper

from arforge.export.checkpoint import is_averaged, open_checkpoint
from arforge.export.checkpoint_files import files_of
from arforge.export.facts import hashes
from arforge.export.families import FAMILIES
from arforge.export.layers import pad_heads, pad_weight
from arforge.export.module_engine import ModuleEngine
from arforge.export.stored_tensors import load_whole
from arforge.runner.backends.engine import Engine
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import sample_conditions
from arforge.runner.errors import VerificationError
from arforge.runner.side_by_side import LogitAgreement, LogitComparison, logits_of, side_by_side

TOLERANCE = 1e-3  # of logits, relative to the largest


def load_module(bundle: Bundle, precision: str = "fp32") -> Any:
    """The torch module with the weights that the bundle stores."""
    try:
        family, config = FAMILIES[bundle.model.family], bundle.model.config
        dimensions = family.config(**{**config, "grid": tuple(config["grid"])})
        with torch.device("meta"):  # nothing is allocated for dimensions that make no sense
            expected = pad_heads(family.module(dimensions), dimensions.head_size).state_dict()
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise VerificationError(f"{bundle.root}: the manifest's model is none that arforge knows ({error})") from error
    stored = stored_weights(bundle.graph("step-logits", precision))
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(stored[name].shape) for name in wanted if name in stored}
    if found != wanted:
        raise VerificationError(
            f"{bundle.root}: the stored weights are not those of the manifest's model: export again"
        )
    module = pad_heads(family.module(dimensions), dimensions.head_size).eval()
    module.load_state_dict({name: stored[name] for name in wanted})
    return module


def stored_weights(graph: Path) -> dict[str, torch.Tensor]:
    """A graph's weights by parameter name, in the module's layout: matrix factors are stored transposed."""
    model = load_whole(graph)
    factors = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: torch.from_numpy((a.T if name in factors else a).copy()) for name, a in arrays.items()}


def check_provenance(bundle: Bundle, checkpoint: Path) -> str:
    """Whether the manifest's provenance names this file. Raises VerificationError if it names none."""
    recorded = bundle.provenance.get("checkpoint")
    digest = recorded.get("sha256") if isinstance(recorded, dict) else None
    if not isinstance(digest, str):
        raise VerificationError(f"{bundle.root} does not say which checkpoint it was made from: export it again")
    if digest == hashes(files_of(checkpoint))[1]:
        return f"the bundle was made from this file, sha256 {digest}"
    return f"the bundle was made from another file with the same weights, sha256 {digest}"


def check_weights(bundle: Bundle, checkpoint: Path, precision: str = "fp32") -> int:
    """Raise VerificationError unless the stored weights are the checkpoint's; returns how many there are."""
    recorded = bundle.provenance.get("checkpoint")
    averaged = isinstance(recorded, dict) and is_averaged(str(recorded.get("weights")))
    source, parameter = open_checkpoint(checkpoint, averaged=averaged), FAMILIES[bundle.model.family].parameter
    module = load_module(bundle, precision)
    stored = module.state_dict()
    for name, tensor in stored.items():
        wanted = pad_weight(name, parameter(source, name).to(torch.float32), module.config.head_size)
        if not torch.equal(tensor, wanted):
            raise VerificationError(f"weight {name} of {bundle.root} differs from {checkpoint}: export it again")
    return len(stored)


def compare_logits(bundle: Bundle, schedule: str, max_steps: int) -> LogitAgreement:
    """Run graph and module side by side, each on its own caches, greedily; raise VerificationError if they part."""
    module = load_module(bundle)
    graph = OnnxRuntimeEngine(bundle, "fp32", graph="step-logits")
    engines: list[Engine] = [graph, ModuleEngine(module, bundle.model)]
    comparison = LogitComparison()
    for done in side_by_side(bundle, schedule, engines, sample_conditions(bundle, 2), max_steps):
        found, wanted = (logits_of(step, buffers) for step, buffers in done)
        comparison.add(wanted, found)
    graph.close()
    agreement = comparison.result()
    if not agreement.largest_error <= TOLERANCE:
        raise VerificationError(
            f"schedule {schedule}: the graph's logits differ from the torch module's by {agreement.largest_error:.2e} "
            f"of the largest, allowed is {TOLERANCE:.0e}: export the bundle again"
        )
    return agreement
