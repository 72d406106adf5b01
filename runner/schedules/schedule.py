"""A decoding schedule: which tokens each step feeds, what they may see, and which cells they decide.

A schedule is data. It is made by a pure function of the grid and its own parameters (`specification.py`), knows no
model, and can be stored (`schedule_file.py`), plotted and interpreted by any runner. Cells are raster indices.

The cache is filled in the order of generation: first `zero_slots` slots that stay zero, then each step's inputs,
contiguously. A slot is visible to an input when its rank is at most the input's rank (`visibility.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple


class Source(IntEnum):
    """Where an input's token comes from; `Input.value` says which."""

    CELL = 0  # a cell that is kept, or was sampled in an earlier step
    CONDITION = 1  # the request's condition token of that index: for class-conditional models, the class
    SPECIAL = 2  # the model's special token of that index, such as PAR's transition tokens


class Input(NamedTuple):
    """One input of a step."""

    source: Source
    value: int
    position: int  # the condition's is 0, a cell's 1 + cell; where rows end in a token, those count too
    rank: int
    holes: int = 0  # how many zero slots it sees


CLASS_TOKEN = Input(Source.CONDITION, 0, position=0, rank=0)


class Target(NamedTuple):
    """One sampled cell: output `row` of the step decides `cell`; there is one output an input, or a query."""

    row: int
    cell: int


@dataclass(frozen=True)
class Step:
    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]
    commit: int  # how many of this step's cache slots stay
    retire: tuple[int, ...] = ()  # slots that neither this step's inputs nor later ones see
    guidance: float = 1.0  # the step's scale is 1 + (request's scale - 1) * guidance

    @property
    def width(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class RowRules:
    """How the rows of ZipAR follow one another; the words are explained where they are built from (`raster.py`)."""

    window: int  # cells that a row has before the one below may start
    first_row: str = "published"
    seed: str = "published"
    holes: str = "published"
    cfg_interval: int = -1
    row_end: int | None = None  # index of the special token that ends each row; None where nothing does


@dataclass(frozen=True)
class Schedule:
    specification: str  # canonical, such as "zipar:16" or "zipar:16,holes=masked"
    grid: tuple[int, int]
    steps: tuple[Step, ...]
    conditions: int = 1
    zero_slots: int = 0
    queries: bool = False  # the model is asked for the targets' cells, rather than for what follows each input
    kept: tuple[int, ...] = ()  # cells whose tokens the request brings; the steps decide the others
    jacobi: int = 0  # inputs that a runner may run ahead on drafts in one call; 0: the steps as they stand
    rows: RowRules | None = None  # rows start when an image's tokens allow it; the steps are those if they always did

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The distinct numbers of inputs that a call may have, ascending."""
        if self.jacobi:
            return 1, self.jacobi
        if self.rows:
            return tuple(range(1, max(step.width for step in self.steps) + 1))
        return tuple(sorted({step.width for step in self.steps}))

    @property
    def pace(self) -> str | None:
        """How an image's calls differ from the steps, in words; None where they are the steps."""
        if self.jacobi:
            return f"an image takes as many calls as its drafts need, of up to {self.jacobi} tokens"
        if self.rows:
            return "an image takes at least these steps: a row starts when its first token has settled"
        return None

    def outputs(self, step: Step) -> int:
        """How many tokens the step samples for an image, wanted or not."""
        return len(step.targets) if self.queries else step.width

    @cached_property
    def specials(self) -> int:
        """How many special tokens the model must have."""
        used = (i.value for step in self.steps for i in step.inputs if i.source is Source.SPECIAL)
        return 1 + max(used, default=-1)

    @cached_property
    def last_position(self) -> int:
        return max(given.position for step in self.steps for given in step.inputs)

    @cached_property
    def write_indices(self) -> tuple[int, ...]:
        """The first cache slot that each step writes."""
        indices, slot = [], self.zero_slots
        for step in self.steps:
            indices.append(slot)
            slot += step.commit
        return tuple(indices)

    @cached_property
    def slots(self) -> int:
        """Cache slots that the schedule touches; padding a step needs spare ones beyond."""
        pairs = zip(self.write_indices, self.steps, strict=True)
        return max(index + step.width for index, step in pairs)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The cells in the order in which they are decided."""
        return tuple(target.cell for step in self.steps for target in step.targets)

    def to_json(self) -> dict[str, Any]:
        """The schedule as plain data, every input by its source."""
        names = {Source.CELL: "cell", Source.CONDITION: "condition", Source.SPECIAL: "special"}
        steps = [
            {
                "inputs": [
                    {names[i.source]: i.value, "position": i.position, "rank": i.rank, "holes": i.holes}
                    for i in step.inputs
                ],
                "targets": [target.cell for target in step.targets],
                "rows": [target.row for target in step.targets],
                "commit": step.commit,
                "retire": list(step.retire),
                "guidance": step.guidance,
            }
            for step in self.steps
        ]
        return {
            "schedule": self.specification,
            "grid": list(self.grid),
            "conditions": self.conditions,
            "zero_slots": self.zero_slots,
            "queries": self.queries,
            "kept": list(self.kept),
            "jacobi": self.jacobi,
            "rows": None if self.rows is None else asdict(self.rows),
            "slots": self.slots,
            "steps": steps,
            "order": list(self.order),
        }
