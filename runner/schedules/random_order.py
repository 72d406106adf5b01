"""The schedule of ARPG (arXiv 2503.10568): cells in a random order, in groups that grow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from arforge.runner.errors import ScheduleError
from arforge.runner.randomness import uniforms
from arforge.runner.schedules.schedule import CLASS_TOKEN, Input, Schedule, Source, Step, Target

ORDER_STREAM = 1  # of the generator, apart from the one that samples


def random_order(cells: int, seed: int) -> list[int]:
    """The cells sorted by their uniform number of that seed."""
    numbers = uniforms(np.array([seed], dtype=np.uint64), cells, ORDER_STREAM)[0]
    order: list[int] = np.argsort(numbers, kind="stable").tolist()
    return order


def group_sizes(cells: int, steps: int, ratio: str) -> list[int]:
    """How many cells each of `steps` steps decides: the published "arccos" or "cosine" mask ratio."""
    sizes, done = [], 0
    for step in range(steps):
        share = (step + 1) / steps
        left = np.arccos(share) / (math.pi * 0.5) if ratio == "arccos" else np.cos(math.pi / 2.0 * share)
        masked = max(1, min(cells - done - 1, int(cells * left)))
        sizes.append(cells - done if step == steps - 1 else cells - done - masked)
        done += sizes[-1]
    return sizes


def arpg(
    specification: str,
    grid: tuple[int, int],
    steps: int,
    ratio: str = "arccos",
    cfg: str = "linear",
    order: int = 0,
    groups: str = "published",
    kept: Sequence[int] = (),
) -> Schedule:
    """ARPG in `steps` steps. Each feeds the cells of the last one and queries the next.

    Guidance grows with the share of cells known, this step's included (`cfg` "linear"), or is "constant".
    The cells of a group see each other ("published"), or those before them only, as in training ("causal").
    The tokens of `kept` cells are fed with the class, in the same order and as in training, and the others decided
    in as many of the steps as is their share of the grid.
    Raises ScheduleError if there are more steps than cells, or nothing is left to decide.
    """
    cells = grid[0] * grid[1]
    if not 1 <= steps <= cells:
        raise ScheduleError(f"{steps} steps do not fit a grid of {grid[0]}x{grid[1]}: use arpg:1 to arpg:{cells}")
    if not 0 <= order < 2**63:
        raise ScheduleError(f"order seed {order} is out of range: use 0 to 2**63 - 1")
    given = set(kept)
    sequence = sorted(random_order(cells, order), key=lambda cell: cell not in given)
    done = len(given)
    if done == cells:
        raise ScheduleError(f"all {cells} cells are kept: leave at least one to decide")

    def known(place: int) -> Input:
        cell, rank = sequence[place], 1 + place
        return Input(Source.CELL, cell, position=1 + cell, rank=rank if groups == "causal" else min(rank, len(given)))

    inputs = (CLASS_TOKEN, *map(known, range(done)))
    compiled = []
    for size in group_sizes(cells - done, -(-steps * (cells - done) // cells), ratio):
        places = range(done, done + size)
        done += size
        targets = tuple(Target(row, sequence[place]) for row, place in enumerate(places))
        weight = float(np.float32(done / cells)) if cfg == "linear" else 1.0  # as a schedule file holds it
        compiled.append(Step(inputs, targets, commit=len(inputs), guidance=weight))
        inputs = tuple(map(known, places))
    return Schedule(specification, grid, tuple(compiled), queries=True, kept=tuple(kept))
