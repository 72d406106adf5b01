"""The contract of the table graph, between two calls of a TensorRT step whose schedule is a table: what the first has
sampled goes to the tokens known so far, and from those the second is fed.

It is no graph of a bundle but of an engine, and knows a plan by tables that stay on the device from batch to batch.
Calls count from 0; tables of inputs, and of outputs, have those of one call after those of another. `images`, `rows`,
`width` and `queries` are those of the call that comes next, `drawn` has room for the outputs of any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import ModelFacts
from arforge.runner.plan import Plan
from arforge.runner.schedules.schedule import Schedule
from arforge.runner.step_graph import Contract, Tensor

PROGRESS = ("call", "fault", "fault_call")
STATE = ("known", *PROGRESS)
NO_CALL = -2  # in place of the call that decides a column, where none does; -1 is what was before the first


@dataclass(frozen=True)
class TableSizes:
    """The largest plan that a table graph has room for."""

    calls: int
    inputs: int  # of all calls, padded to the widths of an engine
    outputs: int  # of all calls
    most: int  # outputs of one call
    columns: int  # cells, conditions and special tokens

    @classmethod
    def of(cls, plan: Plan) -> TableSizes:
        return cls.of_calls([(step.width, step.queries) for step in plan.steps], plan.schedule)

    @classmethod
    def of_calls(cls, kinds: Sequence[tuple[int, int]], schedule: Schedule) -> TableSizes:
        """`kinds`: width and queries of each call."""
        outputs = [queries or width for width, queries in kinds]
        columns = schedule.cells + schedule.conditions + schedule.specials
        return cls(len(outputs), sum(width for width, _ in kinds), sum(outputs), max(outputs), columns)

    def hold(self, other: TableSizes) -> bool:
        return all(room >= asked for room, asked in zip(vars(self).values(), vars(other).values(), strict=True))


def largest(sizes: Iterable[TableSizes]) -> TableSizes:
    """What has room for all of them."""
    return TableSizes(*(max(column) for column in zip(*(vars(one).values() for one in sizes), strict=True)))


def next_name(state: str) -> str:
    """The output that a part of the state leaves as."""
    return f"next_{state}"


def table_contract(
    model: ModelFacts, sizes: TableSizes, step: str, slots: int, *, one_mask: bool, own_mask: bool
) -> Contract:
    """`step`: the kind of step graph. The step takes one mask for all rows, or makes its own, or has one a row."""
    outputs = "queries" if model.queries else "width"
    noise = step == "step-noise"
    state = (
        Tensor("known", "int64", ("rows", sizes.columns)),
        Tensor("call", "int64", (1,)),  # the one that has run; -1 before the first
        Tensor("fault", "int64", ("images",)),  # what came first where a token should; 0: nothing
        Tensor("fault_call", "int64", ("images",)),  # in that call
    )
    drawing = Tensor("uniforms", "float32", ("images", outputs))
    if noise:
        drawing = Tensor("noise", "float32", ("images", outputs, model.vocabulary))
    per_output = ("asked",) if model.queries else ()  # positions
    plan = [
        Tensor("last_call", "int64", (1,)),
        Tensor("call_slots", "int64", (sizes.calls,)),  # that a call writes from
        Tensor("call_inputs", "int64", (sizes.calls,)),  # the first of each call
        Tensor("call_outputs", "int64", (sizes.calls,)),
        Tensor("call_drawn", "int64", (sizes.calls,)),  # how many outputs
        Tensor("decided_by", "int64", (sizes.columns,)),  # the call; `NO_CALL` where none does
        Tensor("decided_at", "int64", (sizes.columns,)),  # its output
        Tensor("input_columns", "int64", (sizes.inputs,)),  # of `known` that hold their tokens
        Tensor("input_positions", "int64", (sizes.inputs,)),
        *(() if own_mask else (Tensor("input_sees", "bool", (sizes.inputs, slots)),)),
        Tensor("output_cells", "int64", (sizes.outputs,)),  # that outputs decide; any where they decide none
        *(Tensor(f"output_{name}", "int64", (sizes.outputs,)) for name in per_output),
    ]
    numbers = [  # shapes as numbers, since TensorRT reads shapes on the host
        Tensor("image_numbers", "int64", ("images",)),  # 0, 1, 2, …
        Tensor("row_zeros", "int64", ("rows",)),
        Tensor("width_numbers", "int64", ("width",)),
        *((Tensor("query_numbers", "int64", ("queries",)),) if model.queries else ()),
    ]
    seen = () if one_mask or own_mask else (Tensor("seen", "bool", ("rows", slots)),)  # of a row's prompt
    batch = [
        Tensor("call_guidance", "float32", ("images", sizes.calls)),
        Tensor(f"cell_{drawing.name}", "float32", ("images", model.cells, *drawing.shape[2:])),
        Tensor("moved", "int64", ("rows",)),  # added to positions
        *seen,
    ]
    mask = Tensor("mask", "bool", (1 if one_mask else "rows", 1, "width", slots))
    fed = (
        Tensor("tokens", "int64", ("rows", "width")),
        Tensor("positions", "int64", ("rows", "width")),
        Tensor("write_index", "int64", ("rows",)),
        *(() if own_mask else (mask,)),
        *((Tensor("query_positions", "int64", ("rows", "queries")),) if model.queries else ()),
        drawing,
        Tensor("guidance", "float32", ("images", outputs)),
    )
    written = (Tensor(next_name(part.name), part.dtype, part.shape) for part in state)
    return Contract((*state, Tensor("drawn", "int64", ("drawn",)), *plan, *numbers, *batch), (*written, *fed))


def table_of_plan(plan: Plan) -> dict[str, NDArray[Any]]:
    """What all batches of a plan have in common, by the names of `table_contract`."""
    steps = plan.steps
    columns = plan.schedule.cells + plan.schedule.conditions + plan.schedule.specials
    outputs = np.array([step.queries or step.width for step in steps])
    firsts = np.cumsum(outputs) - outputs
    decided_by, decided_at = np.full(columns, NO_CALL), np.zeros(columns, np.int64)
    cells = np.zeros(outputs.sum(), np.int64)
    for call, (step, first) in enumerate(zip(steps, firsts, strict=True)):
        decided_by[step.target_cells], decided_at[step.target_cells] = call, step.target_rows
        cells[first + step.target_rows] = step.target_cells
    widths = np.array([step.width for step in steps])
    return {
        "last_call": np.array([len(steps) - 1]),
        "call_slots": np.array([step.write_index for step in steps]),
        "call_inputs": np.cumsum(widths) - widths,
        "call_outputs": firsts,
        "call_drawn": outputs,
        "decided_by": decided_by,
        "decided_at": decided_at,
        "input_columns": np.concatenate([step.columns for step in steps]),
        "input_positions": np.concatenate([step.positions for step in steps]),
        "input_sees": np.concatenate([step.mask for step in steps]),
        "output_cells": cells,
        "output_asked": np.concatenate([step.query_positions for step in steps]),
    }
