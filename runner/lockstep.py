"""Drives engines side by side over the steps of a schedule, all on the tokens that the first one prefers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from arforge.runner.bundle import Bundle
from arforge.runner.engine import Engine, StepBuffers
from arforge.runner.plan import PlannedStep, make_plan
from arforge.runner.runner import guided_rows

GUIDANCE = 2.0


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
