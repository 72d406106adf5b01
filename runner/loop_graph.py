"""The contract of the loop graph, between two calls of a TensorRT step: from what was sampled to what is fed next.

It is no graph of a bundle but of an engine, and knows a line of inputs (`plan.Line`) by tables that go up once a
batch. `images`, `rows` and `width` are those of the step that comes next, `fed` the width of the one that has run.
"""

from __future__ import annotations

from dataclasses import dataclass

from arforge.runner.bundle import ModelFacts
from arforge.runner.step_graph import Contract, Tensor

LOOK_EVERY = 8
"""Calls between two looks of the host, by default: a cancel or a NaN waits for 7 calls at most, and the host for the
device an eighth as often as at every call."""
PROGRESS = ("place", "passes", "fault")
STATE = ("known", *PROGRESS)


@dataclass(frozen=True)
class LoopSizes:
    """What the numbers of a loop graph are, beside those of the model."""

    inputs: int  # of the line
    slots: int  # of the caches
    one_mask: bool  # whether the step takes one mask for all rows
    own_mask: bool  # or makes its own


def next_name(state: str) -> str:
    """The output that a part of the state leaves as."""
    return f"next_{state}"


def loop_contract(model: ModelFacts, sizes: LoopSizes, step: str) -> Contract:
    """`step`: the kind of step graph, which draws with uniform numbers or with noise."""
    cells, inputs = model.cells, sizes.inputs
    noise = step == "step-noise"
    state = (
        Tensor("known", "int64", ("images", cells)),  # tokens, decided or drafted
        Tensor("place", "int64", ("images",)),  # inputs of the line in the cache that are right
        Tensor("passes", "int64", ("images",)),  # calls until the image was done
        Tensor("fault", "int64", ("images",)),  # what came where a token should; 0: nothing. All stop then
    )
    drawing = Tensor("noise", "float32", ("images", "width", model.vocabulary))
    if not noise:
        drawing = Tensor("uniforms", "float32", ("images", "width"))
    seen = Tensor("seen", "bool", (1 if sizes.one_mask else "rows", sizes.slots))  # before the line's first slot
    mask = Tensor("mask", "bool", (seen.shape[0], 1, "width", sizes.slots))
    tables = [
        *(Tensor(f"line_{name}", "int64", (inputs,)) for name in ("tokens", "positions", "sources", "targets")),
        Tensor("line_reached", "int64", (inputs + 1,)),  # cells that so many inputs decide
        Tensor("line_guidance", "float32", ("images", inputs)),
        Tensor("deciders", "int64", (cells,)),  # the input that decides each cell
        Tensor("feeders", "int64", (cells,)),  # the input that is its token; `inputs` where none is
        Tensor(f"cell_{drawing.name}", "float32", ("images", cells, *drawing.shape[2:])),
        Tensor("first_tokens", "int64", ("rows",)),  # of the condition
        Tensor("first_slot", "int64", (1,)),  # of the line
        Tensor("moved", "int64", ("rows",)),  # added to positions
        Tensor("offsets", "int64", ("width",)),  # 0, 1, 2, …: a width as numbers, since shapes come from the host
        Tensor("fed", "int64", (1,)),
        *(() if sizes.own_mask else (seen,)),
    ]
    fed = (
        Tensor("tokens", "int64", ("rows", "width")),
        Tensor("positions", "int64", ("rows", "width")),
        Tensor("write_index", "int64", ("rows",)),
        *(() if sizes.own_mask else (mask,)),
        drawing,
        Tensor("guidance", "float32", ("images", "width")),
    )
    written = (Tensor(next_name(part.name), part.dtype, part.shape) for part in state)
    return Contract((*state, Tensor("drawn", "int64", ("images", "fed")), *tables), (*written, *fed))
