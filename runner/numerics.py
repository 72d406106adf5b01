"""Notices the step in which a model's logits stop being numbers, before a token of theirs is used.

The step graph's sampler gives -1 in place of a token where a logit is non-finite (`export/sampler.py`), so a look
at the few tokens of a step is all that it takes.
"""

from __future__ import annotations

import numpy as np

from arforge.runner.backends.engine import Engine, StepBuffers
from arforge.runner.bundle import ModelFacts
from arforge.runner.decoding import Decoding
from arforge.runner.errors import NumericsError
from arforge.runner.plan import Plan
from arforge.runner.step_graph import cache_names

NO_TOKEN = -1


def check_step(
    engine: Engine, model: ModelFacts, plan: Plan, decoding: Decoding, buffers: StepBuffers, first_image: int = 0
) -> None:
    """Raise NumericsError unless the call of `decoding` that has just run in `buffers` gave tokens for all its cells.

    The error names the images, counted from `first_image`, and the first cache that is spoilt. The caches are cleared
    before: NaN in a slot that no mask lets through would still reach the next request.
    """
    drawn = decoding.drawn(buffers)
    if not drawn.size or (drawn.min() >= 0 and drawn.max() < model.vocabulary):
        return
    wrong = (drawn < 0) | (drawn >= model.vocabulary)
    images = ", ".join(str(first_image + image) for image in np.flatnonzero(wrong.any(axis=1))[:8])
    where = f"step {decoding.done} of {plan.length}, image {images}"
    if (drawn[wrong] != NO_TOKEN).any():
        raise NumericsError(
            f"{where}: the graph gives tokens outside 0..{model.vocabulary - 1}: export the bundle again"
        )
    spoilt = spoilt_cache(engine, model, decoding.written)
    engine.prepare(len(drawn), len(buffers.write_index), plan.slots, zero_slots=plan.slots)
    raise NumericsError(f"{where}: the logits are non-finite{spoilt}; {advice(engine)}")


def advice(engine: Engine) -> str:
    """What helps against logits that are non-finite."""
    half = engine.cache_type == np.float16
    return "use a bf16 or fp32 engine, which reach further than fp16" if half else "check the weights: arforge verify"


def spoilt_cache(engine: Engine, model: ModelFacts, slots: int) -> str:
    """Where NaN or infinity first shows in the slots that are written, in the order of the layers."""
    for name in cache_names(model.caches):
        found = engine.cache(name)[:, :, :slots]
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            kind, _, index = name.split("_")
            what = "layer" if model.caches == model.layers else "cache"
            return f", first seen in the {kind}s of {what} {index}"
    return ", with sound caches: they come from the last layer or the output"
