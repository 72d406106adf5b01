"""The table graph of a TensorRT engine: the steps of a static schedule without the host (`runner/table_graph.py`).

It is written down in ONNX's own text form, and is gathers and choices alone, so it costs a few small kernels beside the
step's. What is drawn is put where the table says which call and output decide each cell: nothing is scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from arforge.engines.profiles import Profiles, Shapes
from arforge.engines.tensorrt_loop import free_shapes, noise_reason, parsed_graph
from arforge.runner.bundle import Bundle, ModelFacts
from arforge.runner.plan import make_plan
from arforge.runner.step_graph import Contract, conditioned, guided_rows
from arforge.runner.table_graph import TableSizes, largest, table_contract
from arforge.runner.tabled import is_table

LARGEST_TABLE = 1 << 28  # bytes of what inputs see, on the device and on the host each

STORE = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    vocabulary = Constant <value_ints = [{vocabulary}]> ()
    last_token = Constant <value_ints = [{last_token}]> ()

    before = Max (call, zero)
    drawn_each = Gather (call_drawn, before)
    image_from = Mul (image_numbers, drawn_each)
    images_from = Unsqueeze (image_from, one)
    places = Add (images_from, decided_at)
    sampled = Gather (drawn, places)
    is_new = Equal (decided_by, call)

    new = Where (is_new, sampled, zero)
    least = ReduceMin <keepdims = 0> (new, one)
    most = ReduceMax <keepdims = 0> (new, one)
    none = Less (least, zero)
    foreign = GreaterOrEqual (most, vocabulary)
    too_large = Where (foreign, most, zero)
    found = Where (none, least, too_large)
    sound = Equal (fault, zero)
    next_fault = Where (sound, found, fault)
    next_fault_call = Where (sound, call, fault_call)

    floored = Max (sampled, zero)
    tokens_of_images = Min (floored, last_token)
    tokens_of_rows = Concat <axis = 0> (tokens_of_images, tokens_of_images)
    next_known = Where (is_new, tokens_of_rows, known)
    next_call = Add (call, one)
"""
FEED = """
    fed = Min (next_call, last_call)
    slot = Gather (call_slots, fed)
    write_index = Add (slot, row_zeros)
    first_input = Gather (call_inputs, fed)
    inputs = Add (first_input, width_numbers)
    columns = Gather (input_columns, inputs)
    tokens = Gather <axis = 1> (next_known, columns)
    grid_positions = Gather (input_positions, inputs)
    shift = Unsqueeze (moved, one)
    positions = Add (grid_positions, shift)
    first_output = Gather (call_outputs, fed)
    outputs = Add (first_output, {output_numbers})
    cells = Gather (output_cells, outputs)
    {drawing} = Gather <axis = 1> (cell_{drawing}, cells)
    output_zeros = Min (outputs, zero)
    output_calls = Add (output_zeros, fed)
    guidance = Gather <axis = 1> (call_guidance, output_calls)
"""
QUERIES = """
    asked = Gather (output_asked, outputs)
    zeros_of_rows = Unsqueeze (row_zeros, one)
    query_positions = Add (asked, zeros_of_rows)
"""
ONE_MASK = """
    first_axes = Constant <value_ints = [0, 1]> ()
    sees = Gather (input_sees, inputs)
    mask = Unsqueeze (sees, first_axes)
"""
MASK = """
    sees = Gather (input_sees, inputs)
    prompt_sees = Unsqueeze (seen, one)
    row_sees = Or (sees, prompt_sees)
    mask = Unsqueeze (row_sees, one)
"""


def table_graph(model: ModelFacts, contract: Contract) -> onnx.ModelProto:
    """The graph for engines of guided pairs, with these inputs and outputs."""
    given = {tensor.name for tensor in contract.inputs}
    parts = [STORE, FEED, *([QUERIES] if model.queries else [])]
    if "input_sees" in given:
        parts.append(MASK if "seen" in given else ONE_MASK)
    body = "".join(parts).format(
        vocabulary=model.vocabulary,
        last_token=model.vocabulary - 1,
        output_numbers="query_numbers" if model.queries else "width_numbers",
        drawing="noise" if "cell_noise" in given else "uniforms",
    )
    return parsed_graph("table", contract, body)


@dataclass(frozen=True, order=True)
class TableProfile:
    images: int
    width: int  # of the call that comes next
    queries: int  # 0 where the model has none

    @property
    def rows(self) -> int:
        return guided_rows(self.images, guided=True)


@dataclass(frozen=True)
class TablePlan:
    sizes: TableSizes
    profiles: tuple[TableProfile, ...]
    contract: Contract

    @property
    def facts(self) -> dict[str, Any]:
        """What an identity says of it."""
        return {"table_sizes": asdict(self.sizes), "table_profiles": [asdict(profile) for profile in self.profiles]}

    def content(self, bundle: Bundle) -> bytes:
        """The graph as a file."""
        content: bytes = table_graph(bundle.model, self.contract).SerializeToString(deterministic=True)
        return content

    def shapes(self, bundle: Bundle) -> list[Shapes]:
        """For each profile, the shapes of the inputs that have free dimensions."""
        drawn = self.sizes.most
        return free_shapes(
            self.contract,
            [{**asdict(one), "rows": one.rows, "drawn": one.images * drawn} for one in self.profiles],
        )


def plan_table(
    bundle: Bundle, names: Sequence[str], images: Sequence[int], profiles: Profiles
) -> tuple[TablePlan | None, str | None]:
    """What the table graph of an engine is built for; or why there is none.

    `names`, `images`: schedules (none: all that the bundle stores) and batches of the engine, which has `profiles`.
    """
    schedules = [bundle.schedule(name) for name in names or bundle.specifications]
    plans = [make_plan(schedule, profiles.widths) for schedule in schedules if is_table(schedule)]
    if not plans:
        return None, "in no schedule are all steps settled beforehand"
    known = () if profiles.known is None else (profiles.known,)
    sizes = largest([*(TableSizes.of(plan) for plan in plans), *known])
    if (size := sizes.inputs * profiles.slots) > LARGEST_TABLE:
        return None, f"what the inputs of its steps see takes {size} bytes, allowed are {LARGEST_TABLE}"
    if reason := noise_reason(bundle, images):
        return None, reason
    kinds = {kind for plan in plans for kind in plan.kinds}
    if known:  # then all shapes that there are may follow one another
        kinds |= {(one.width, one.queries) for one in profiles.profiles}
    found = {TableProfile(count, *kind) for kind in kinds for count in images}
    one_mask = not profiles.own_mask and not conditioned(bundle.model)
    contract = table_contract(
        bundle.model, sizes, bundle.sampler.graph, profiles.slots, one_mask=one_mask, own_mask=profiles.own_mask
    )
    return TablePlan(sizes, tuple(sorted(found)), contract), None
