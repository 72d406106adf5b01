"""Cuts steps that are wider than an engine into several, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from arforge.runner.schedules.schedule import Schedule, Step


def narrowed(schedule: Schedule, widest: int) -> Schedule:
    """The same decoding in steps of at most `widest` inputs, wherever steps can be cut.

    A step can be cut before an input that no earlier one of the step sees, if what comes before is kept and decides
    nothing: long conditions and known cells, whose ranks rise from input to input.
    """
    if all(step.width <= widest for step in schedule.steps):
        return schedule
    steps = [part for step in schedule.steps for part in _parts(step, widest, asked=schedule.queries)]
    return replace(schedule, steps=tuple(steps))


def _parts(step: Step, widest: int, *, asked: bool) -> Iterator[Step]:
    while step.width > widest:
        cut = next((cut for cut in range(widest, 0, -1) if _divides(step, cut, asked=asked)), 0)
        if not cut:
            break
        yield replace(step, inputs=step.inputs[:cut], targets=(), commit=cut)
        moved = step.targets if asked else tuple(target._replace(row=target.row - cut) for target in step.targets)
        step = replace(step, inputs=step.inputs[cut:], targets=moved, commit=step.commit - cut, retire=())
    yield step


def _divides(step: Step, cut: int, *, asked: bool) -> bool:
    hidden = max(given.rank for given in step.inputs[:cut]) < min(given.rank for given in step.inputs[cut:])
    silent = asked or all(target.row >= cut for target in step.targets)
    return hidden and silent and step.commit >= cut
