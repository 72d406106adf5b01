"""What an engine will take of memory before it is built: weights, caches, working memory of a step, image decoder.

Worked out from the manifest, the schedules' plans and the files that are there. What no bundle can know is left out:
the process itself, the library, and on GPUs the driver's context (some hundred MB).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arforge.engines.profiles import longest_prompt, plan_profiles
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import prompt_slots
from arforge.runner.plan import make_plan
from arforge.runner.step_graph import guided_rows

FLOAT, HALF = 4, 2  # bytes
ONNXRUNTIME = "onnxruntime"
BLOCK = 64  # inputs that share a scale, where a bundle does not store blocks
RESERVED = 8 << 20  # bytes that TensorRT's builder gives every engine to work in
HEADS = {"logits": 4, "scores": 3, "hidden": 6, "wide": 3}  # arrays of each kind that are alive at once, at most
WIDE = 4  # times the model's width: a feed-forward layer's, at most
FEATURES, ALIVE = 128, 3  # channels of an image decoder at full resolution, and such arrays at once


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, for the largest batch; `built`: what the builder named, of an engine that is there."""

    target: str
    precision: str
    images: int
    slots: int  # of the caches
    weights: int
    caches: int
    activations: int  # a step works in
    decoder: int  # weights of the image decoder, and what it works in
    prompts: int  # weights of the text encoder and what follows it
    built: dict[str, int] | None

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.activations + self.decoder + self.prompts

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def estimate(
    bundle: Bundle, target: str, precision: str, images: Sequence[int], schedules: Sequence[str]
) -> MemoryEstimate:
    """Raises EngineError or ScheduleError for wishes that do not fit the bundle."""
    model, batch = bundle.model, max(images)
    rows = guided_rows(batch, guided=True)
    if target == ONNXRUNTIME:
        plans = [make_plan(bundle.schedule(name), None) for name in schedules or bundle.specifications]
        slots = max(plan.slots for plan in plans) + prompt_slots(model, longest_prompt(model))
        width = max(width for plan in plans for width, _ in plan.kinds)
        entry = HALF if precision in ("fp16", "bf16") else FLOAT
        reserved, scores = 0, True
    else:
        planned = plan_profiles(bundle, schedules, images, ())
        slots, width = planned.slots, max(planned.widths)
        entry = FLOAT if precision == "fp32" else HALF
        reserved, scores = RESERVED, precision == "fp32" or model.caches != model.layers
    return MemoryEstimate(
        target,
        precision,
        batch,
        slots,
        weight_bytes(bundle, target, precision),
        2 * model.caches * rows * model.kv_heads * slots * model.head_size * entry,
        reserved + step_bytes(bundle, rows * width, slots, entry, scores=scores),
        decoder_bytes(bundle, batch),
        sum(bundle.files[graph.weights].bytes for graph in bundle.graphs if graph.name in ("text", "condition")),
        told_by(bundle, target, precision),
    )


def weight_bytes(bundle: Bundle, target: str, precision: str) -> int:
    """Of a file of them where an engine or the bundle has one; else by how many there are."""
    for engine in bundle.engines:
        if (engine.target, engine.precision) == (target, precision):
            named = bundle.identity(engine).get("weights")
            if named and not (target != ONNXRUNTIME and precision == "int4"):  # those are stored once more
                return bundle.files[named].bytes
    stored = {graph.precision: graph.weights for graph in bundle.graphs if graph.name == bundle.sampler.graph}
    if precision in stored and (precision != "int8" or target != ONNXRUNTIME):
        return bundle.files[stored[precision]].bytes
    model = bundle.model
    table, head = model.ids * model.dim, model.vocabulary * model.dim
    rest = model.parameters - table - head
    plain = FLOAT if target == ONNXRUNTIME else HALF  # of what keeps floats
    scale = plain / BLOCK
    return round(
        {
            "fp32": FLOAT * model.parameters,
            "fp16": HALF * model.parameters,
            "bf16": HALF * model.parameters,
            "int8": plain * table + (1 + (scale if target == ONNXRUNTIME else 0)) * (head + rest),
            "int4": plain * table + (1 + scale if target == ONNXRUNTIME else HALF) * head + (0.5 + scale) * rest,
        }[precision]
    )


def step_bytes(bundle: Bundle, tokens: int, slots: int, entry: int, *, scores: bool) -> int:
    """Of a step of so many tokens in all: the largest of its parts. `scores`: whether those of attention are stored."""
    model = bundle.model
    heads = model.dim // model.head_size
    hidden = HEADS["hidden"] * tokens * model.dim * entry
    parts = (
        HEADS["logits"] * tokens * model.vocabulary * FLOAT,
        hidden + HEADS["wide"] * tokens * WIDE * model.dim * entry,
        hidden + (HEADS["scores"] * tokens * heads * slots * FLOAT if scores else 0),
    )
    return max(parts)


def decoder_bytes(bundle: Bundle, images: int) -> int:
    """Weights, and a few arrays of features at full resolution, which are the largest; 0 without an image decoder."""
    if bundle.image_tokenizer is None:
        return 0
    weights = next(bundle.files[graph.weights].bytes for graph in bundle.graphs if graph.name == "decoder")
    height, width = bundle.image_tokenizer.image_size
    return weights + ALIVE * images * height * width * min(FEATURES, weights // (9 * FLOAT)) * FLOAT


def told_by(bundle: Bundle, target: str, precision: str) -> dict[str, int] | None:
    for engine in bundle.engines:
        if (engine.target, engine.precision) == (target, precision):
            return bundle.identity(engine).get("memory")
    return None


def told_memory(lines: Sequence[str]) -> dict[str, int] | None:
    """Weights, and the activations of the largest profile, as TensorRT's builder logs them; None where it does not."""
    found: dict[str, list[int]] = {"Weights": [], "Activation": []}
    for line in lines:
        match = re.match(r"Total (Weights|Activation) Memory: (\d+) bytes", line)
        if match:
            found[match[1]].append(int(match[2]))
    if not all(found.values()):
        return None
    return {"weights": found["Weights"][-1], "activations": max(found["Activation"])}
