"""Drives engines side by side over the steps of a schedule, all on the tokens that the first one prefers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, StepBuffers
from arforge.runner.bundle import Bundle
from arforge.runner.conditions import Conditions, prompt_slots
from arforge.runner.plan import PlannedStep, Prefixes, make_plan
from arforge.runner.prefill import Prefill
from arforge.runner.step_graph import cache_names

GUIDANCE = 2.0


def side_by_side(
    bundle: Bundle, schedule: str, engines: Sequence[Engine], conditions: Conditions, max_steps: int | None = None
) -> Iterator[list[tuple[PlannedStep, StepBuffers]]]:
    """Yield, after each of the first `max_steps` steps, every engine's step and buffers.

    One guided image a condition, greedily. Engines that pad to widths of their own must cut the schedule alike.
    """
    slots = prompt_slots(bundle.model, conditions.longest)
    plans = [make_plan(bundle.schedule(schedule), engine.widths, slots) for engine in engines]
    prompts = conditions.rows(guided=True)
    known = plans[0].known(bundle.model, prompts)
    prefixes = Prefixes()
    for plan, engine in zip(plans, engines, strict=True):
        prefixes = Prefill(engine, bundle.model).start(plan, len(conditions), prompts)
        engine.settings.temperature[:] = 0
    for steps in list(zip(*(plan.steps for plan in plans), strict=True))[:max_steps]:
        done = []
        for step, engine in zip(steps, engines, strict=True):
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known, prefixes)
            buffers.guidance[:] = step.scale(GUIDANCE)
            engine.run(step.width, step.queries)
            done.append((step, buffers))
        yield done
        steps[0].store(done[0][1], known)


def written(bundle: Bundle, engine: Engine, step: PlannedStep) -> dict[str, NDArray[Any]]:
    """The keys and values that a step wrote, by cache: (rows, kv_heads, width, head_size) of the engine's type."""
    new = slice(step.write_index, step.write_index + step.width)
    return {name: engine.cache(name)[:, :, new] for name in cache_names(bundle.model.caches)}


@dataclass(frozen=True)
class LogitAgreement:
    """How near the guided logits of a step graph come to those of a reference, over the cells that steps decide."""

    steps: int
    largest_error: float  # relative to the largest logit of the step
    same_tokens: float  # share of decided cells with the same most likely token


class LogitComparison:
    """Adds up a `LogitAgreement`, step by step."""

    def __init__(self) -> None:
        self._steps, self._largest, self._same, self._cells = 0, 0.0, 0, 0

    def add(self, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """The logits of the cells of one step, (images, targets, vocabulary)."""
        self._steps += 1
        if wanted.size:
            error = np.abs(found - wanted).max() / np.abs(wanted).max()
            self._largest = float(np.maximum(self._largest, error))  # NaN where there is one
            self._same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
            self._cells += wanted.shape[0] * wanted.shape[1]

    def result(self) -> LogitAgreement:
        return LogitAgreement(self._steps, self._largest, self._same / max(1, self._cells))


def logits_of(step: PlannedStep, buffers: StepBuffers) -> NDArray[np.float32]:
    """Guided logits of the cells that a step decides, (images, targets, vocabulary), of an engine that gives them."""
    assert buffers.logits is not None
    return buffers.logits[:, step.target_rows]
