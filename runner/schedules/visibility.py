"""The mask rule, in its one place: a slot is visible to an input when its rank is at most the input's rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from arforge.runner.schedules.schedule import Schedule, Step

NEVER = np.iinfo(np.int32).max  # the rank of slots that are unwritten or retired


class Visibility:
    """Ranks of the cache's slots as a schedule proceeds."""

    def __init__(self, slots: int, zero_slots: int) -> None:
        self.zero_slots = zero_slots
        self.slot_rank = np.full(slots, NEVER, dtype=np.int32)

    def mask(self, step: Step, write_index: int) -> NDArray[np.bool_]:
        """Enter `step`, whose inputs are written from slot `write_index` on; bool [width, slots].

        The step's own inputs see each other by the same rule. Slots that it does not keep are forgotten after it.
        """
        self.slot_rank[list(step.retire)] = NEVER
        ranks = np.array([given.rank for given in step.inputs], dtype=np.int32)
        end = write_index + step.width
        self.slot_rank[write_index:end] = ranks
        mask = self.slot_rank[None, :] <= ranks[:, None]
        holes = np.array([given.holes for given in step.inputs])
        mask[:, : self.zero_slots] = np.arange(self.zero_slots)[None, :] < holes[:, None]
        self.slot_rank[write_index + step.commit : end] = NEVER
        return mask


def masks(schedule: Schedule, slots: int) -> Iterator[NDArray[np.bool_]]:
    """The mask of every step, bool [width, slots], for a cache of `slots` slots."""
    state = Visibility(slots, schedule.zero_slots)
    for step, write_index in zip(schedule.steps, schedule.write_indices, strict=True):
        yield state.mask(step, write_index)


def sees_all_before(schedule: Schedule) -> bool:
    """Whether every input sees the slots up to its own and no others, as next-token decoding's do."""
    inputs = [given for step in schedule.steps for given in step.inputs]
    ranks = [given.rank for given in inputs]
    rising = all(earlier < later for earlier, later in pairwise(ranks))
    kept = all(step.commit == step.width and not step.retire for step in schedule.steps)
    return rising and kept and not schedule.queries and not any(given.holes for given in inputs)
