"""Compares a bundle's graphs with the torch modules that they were traced from, the step's on real steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from arforge.export.checkpoint import is_averaged, open_checkpoint
from arforge.export.checkpoint_files import files_of
from arforge.export.facts import hashes
from arforge.export.families import FAMILIES
from arforge.export.families.family import Family
from arforge.export.layers import pad_heads, pad_values
from arforge.export.module_engine import ModuleEngine
from arforge.export.quantization import dequantized, quantized
from arforge.export.recognition import check_shapes, part_of
from arforge.export.rows import Rows, Values, rows_of
from arforge.export.stored_tensors import take_in
from arforge.export.wide_weights import load_wide
from arforge.runner.backends.engine import Engine
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.bundle import Bundle, ClassCondition, Condition, FeaturesCondition, IdsCondition
from arforge.runner.conditions import ConditionGraph, sample_conditions, sample_features, sample_ids
from arforge.runner.errors import VerificationError
from arforge.runner.side_by_side import LogitAgreement, LogitComparison, logits_of, side_by_side
from arforge.runner.text.id_prompts import IdPrompts

SENSELESS = (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError)
FLOATS = {onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.FLOAT16: torch.float16}
Rounding = Callable[[torch.Tensor], torch.Tensor]
TOLERANCE = 1e-3  # of logits, relative to the largest


def load_module(bundle: Bundle, precision: str = "fp32") -> Any:
    """The decoder's torch module with the weights that the bundle stores."""
    return load(bundle, bundle.graph("step-logits", precision), lambda f, c: pad_heads(f.module(c), c.head_size))


def load_condition_module(bundle: Bundle) -> Any:
    """What makes rows of a condition, as a torch module with the stored weights; None for a model of classes."""
    condition = bundle.model.condition
    if isinstance(condition, ClassCondition):
        return None
    family, config = configuration(bundle)
    known = family.condition(config)
    if prompt_sizes(known) != prompt_sizes(condition):
        raise VerificationError(f"{bundle.root}: the manifest says {condition}, its model has {known}: export again")
    return load(bundle, bundle.graph("condition", "fp32"), lambda f, c: f.condition_module(c))


def prompt_sizes(condition: Condition) -> tuple[object, ...]:
    """The kind of a condition, and the sizes of its graph."""
    if isinstance(condition, ClassCondition):
        return (condition.kind,)
    width = condition.width if isinstance(condition, FeaturesCondition) else condition.vocabulary
    return condition.kind, condition.slots, width


def configuration(bundle: Bundle) -> tuple[Family[Any], Any]:
    """The family of the bundle's model, and its dimensions there."""
    try:
        family, config = FAMILIES[bundle.model.family], bundle.model.config
        return family, family.config(**{**config, "grid": tuple(config["grid"])})
    except SENSELESS as error:
        raise VerificationError(f"{bundle.root}: the manifest's model is none that arforge knows ({error})") from error


def load(bundle: Bundle, graph: Path, build: Callable[[Any, Any], torch.nn.Module]) -> torch.nn.Module:
    """A module of the bundle's family, which `build` makes of it and its configuration, with the graph's weights."""
    family, dimensions = configuration(bundle)
    try:
        with torch.device("meta"):  # nothing is allocated for dimensions that make no sense
            expected = build(family, dimensions).state_dict()
    except SENSELESS as error:
        raise VerificationError(f"{bundle.root}: the manifest's model is none that arforge knows ({error})") from error
    stored = stored_weights(graph)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(stored[name].shape) for name in wanted if name in stored}
    if found != wanted:
        raise VerificationError(
            f"{bundle.root}: the stored weights are not those of the manifest's model: export again"
        )
    module = build(family, dimensions).eval()
    module.load_state_dict({name: stored[name] for name in wanted})
    return module


def stored_weights(graph: Path) -> dict[str, torch.Tensor]:
    """A graph's weights by parameter name, in the module's layout, in float32: factors of products are transposed."""
    model = load_wide(graph)
    for tensor in model.graph.initializer:
        take_in(tensor, graph.parent)
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
    """Raise VerificationError unless the stored weights are the checkpoint's, rounded as they are stored.

    Returns how many there are. Raises CheckpointError for a checkpoint of another model.
    """
    recorded = bundle.provenance.get("checkpoint")
    averaged = isinstance(recorded, dict) and is_averaged(str(recorded.get("weights")))
    family, config = configuration(bundle)
    source = part_of(open_checkpoint(checkpoint, averaged=averaged), family)
    check_shapes(source, family.checkpoint_shapes(config), family.name, "the manifest")
    module, condition = load_module(bundle, precision), load_condition_module(bundle)
    parts = [("step-logits", module, module.config.head_size)]
    parts += [] if condition is None else [("condition", condition, None)]
    for graph, part, head_size in parts:
        rounds = roundings(bundle.graph(graph, precision))
        for name, tensor in part.state_dict().items():
            if head_size is None:
                wanted: Values = source.rows(name)
            else:
                wanted = pad_values(name, family.parameter(config, source, name), head_size, module.interleaved)
            if not same(tensor, rows_of(wanted), rounds.get(name, torch.Tensor.float)):
                raise VerificationError(f"weight {name} of {bundle.root} differs from {checkpoint}: export it again")
    return sum(len(part.state_dict()) for _, part, _ in parts)


def roundings(graph: Path) -> dict[str, Rounding]:
    """For each weight of a graph that is not stored in float32, what it makes of values, as float32 again."""
    model = onnx.load(graph, load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, Rounding] = {name: as_floats(FLOATS[kind]) for name, kind in kinds.items() if kind in FLOATS}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            block = next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
            found[node.input[0]] = as_blocks(8 if kinds[node.input[0]] == onnx.TensorProto.UINT8 else 4, block)
    return found


def as_floats(dtype: torch.dtype) -> Rounding:
    return lambda values: values.to(dtype).to(torch.float32)


def as_blocks(bits: int, block: int) -> Rounding:
    return lambda values: torch.from_numpy(dequantized(*quantized(values.to(torch.float32).numpy(), bits, block), bits))


def same(tensor: torch.Tensor, rows: Rows, rounding: Rounding) -> bool:
    """Whether a tensor is what is made of `rows`."""
    blocks = ((first, rounding(block)) for first, block in rows.blocks())
    return tensor.shape == rows.shape and all(
        torch.equal(tensor[first : first + len(block)] if rows.shape else tensor, block) for first, block in blocks
    )


def compare_condition(bundle: Bundle) -> float | None:
    """The largest error of the condition graph's rows beside the module's, relative to the largest.

    On random features of all lengths up to some, and of the longest. None for a model of classes. Raises
    VerificationError if they part.
    """
    module = load_condition_module(bundle)
    if module is None:
        return None
    worst = 0.0
    for given, *prompts in condition_samples(bundle):
        with torch.no_grad():
            made = module(torch.from_numpy(given)[None])
        wanted = [made] if isinstance(made, torch.Tensor) else [made[0], made[1][None]]
        for prompt, rows in zip(prompts, (one[0].numpy() for one in wanted), strict=True):
            assert prompt.rows is not None
            fits = prompt.rows.shape == rows.shape
            error = float(np.abs(prompt.rows - rows).max() / np.abs(rows).max()) if fits else np.inf
            worst = float(np.maximum(worst, error))  # NaN where there is one
    if not worst <= TOLERANCE:
        raise VerificationError(
            f"{bundle.root}: the graph 'condition' gives rows that differ from the torch module's by {worst:.2e} of "
            f"the largest, allowed is {TOLERANCE:.0e}: export the bundle again"
        )
    return worst


def condition_samples(bundle: Bundle) -> Iterator[tuple[Any, ...]]:
    """Random prompts of all lengths up to some, and of the longest, each with the graph's rows of it.

    Of features, the rows that stand for none come too.
    """
    graph, condition = ConditionGraph(bundle), bundle.model.condition
    assert not isinstance(condition, ClassCondition)
    if isinstance(condition, IdsCondition):
        ids = sample_ids(condition, 8)
        ids.append(longest(ids[-1], condition.slots))
        yield from zip(ids, graph.of_ids(IdPrompts(ids, [], together=None)).conditional, strict=True)
        return
    features = sample_features(bundle.model, 8)
    features.append(longest(features[-1], condition.slots))
    found = graph.of_features(features)
    yield from zip(features, found.conditional, found.unconditional, strict=True)


def longest(prompt: NDArray[Any], slots: int) -> NDArray[Any]:
    """A prompt repeated until it fills its slots."""
    return np.concatenate([prompt] * slots)[:slots]


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
