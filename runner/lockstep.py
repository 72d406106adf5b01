"""Drives engines side by side over the steps of a schedule, all on the tokens that the first one prefers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import Engine, StepBuffers
from arforge.runner.backends.onnxruntime_engine import cache_names
from arforge.runner.bundle import Bundle
from arforge.runner.plan import PlannedStep, make_plan
from arforge.runner.runner import guided_rows

GUIDANCE = 2.0


class Readable(Protocol):
    """An engine whose caches can be looked at."""

    def cache(self, name: str) -> NDArray[Any]: ...


def lockstep(
    bundle: Bundle, schedule: str, engines: Sequence[Engine], classes: Sequence[int], max_steps: int | None = None
) -> Iterator[list[tuple[PlannedStep, StepBuffers]]]:
    """Yield, after each of the first `max_steps` steps, every engine's step and buffers.

    One guided image a class, greedily. Engines that pad to widths of their own must cut the schedule alike.
    """
    plans = [make_plan(bundle.schedule(schedule), engine.widths) for engine in engines]
    images, rows = len(classes), guided_rows(len(classes), guided=True)
    given = np.zeros((images, bundle.model.cells), np.int64)  # of kept cells, which stored schedules have none of
    known = plans[0].known(bundle.model, np.array(classes, dtype=np.int64), rows, given)
    for plan, engine in zip(plans, engines, strict=True):
        engine.prepare(images, rows, plan.slots, plan.schedule.zero_slots)
        engine.scalars.temperature[:] = 0
    for steps in list(zip(*(plan.steps for plan in plans), strict=True))[:max_steps]:
        done = []
        for step, engine in zip(steps, engines, strict=True):
            buffers = engine.buffers(step.width, step.queries)
            step.fill(buffers, known)
            engine.scalars.guidance[:] = step.scale(GUIDANCE)
            engine.run(step.width, step.queries)
            done.append((step, buffers))
        yield done
        steps[0].store(done[0][1], known)


def written(bundle: Bundle, engine: Readable, step: PlannedStep) -> dict[str, NDArray[Any]]:
    """The keys and values that a step wrote, by cache: (rows, kv_heads, width, head_size) of the engine's type."""
    new = slice(step.write_index, step.write_index + step.width)
    return {name: engine.cache(name)[:, :, new] for name in cache_names(bundle.model.caches)}
