"""The loop graph of a TensorRT engine: running ahead on drafts without the host (`runner/loop_graph.py`).

It is written down in ONNX's own text form. Everything is a gather or stands for each cell by itself, so a call costs a
few small kernels beside the step's. Of a line in which every input sees all before it, `JacobiDecoding` comes to this:

- A cell is decided by the output of its decider, if the call has fed that input.
- The first draft that did not come out again ends what is right; the cell's feeder is where the next call begins.
- Cells that no output has reached have the token of the next cell above them that one has, in the first row token 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
import onnx.parser

from arforge.engines.profiles import Profiles, Shapes
from arforge.runner.bundle import Bundle, ModelFacts
from arforge.runner.loop_graph import LoopSizes, loop_contract
from arforge.runner.looped import line_of, loop_widths
from arforge.runner.plan import make_plan
from arforge.runner.step_graph import Contract, Tensor, conditioned, guided_rows

OPSET, IR_VERSION = 23, 11
LARGEST_NOISE = 1 << 30  # bytes, on the device and on the host each
TYPES = {"int64": "int64", "float32": "float", "bool": "bool"}  # in ONNX's text

ADVANCE = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    inputs = Constant <value_ints = [{inputs}]> ()
    last = Constant <value_ints = [{last}]> ()
    across = Constant <value_ints = [{across}]> ()
    vocabulary = Constant <value_ints = [{vocabulary}]> ()
    cells = Constant <value = int64[{cells}] {{{numbers}}}> ()

    reach = Add (place, fed)
    end = Min (reach, inputs)
    at = Unsqueeze (place, one)
    output = Sub (deciders, at)
    behind = Less (output, zero)
    beyond = GreaterOrEqual (output, fed)
    outside = Or (behind, beyond)
    inside = Not (outside)
    widest = Sub (fed, one)
    below = Min (output, widest)
    bounded = Max (below, zero)
    decided = GatherElements <axis = 1> (drawn, bounded)
    fresh = Where (inside, decided, known)

    same = Equal (decided, known)
    changed = Not (same)
    differs = And (inside, changed)
    wrong = Where (differs, feeders, inputs)
    first_wrong = ReduceMin <keepdims = 0> (wrong, one)
    right = Min (first_wrong, end)

    least = ReduceMin <keepdims = 0> (drawn, one)
    most = ReduceMax <keepdims = 0> (drawn, one)
    none = Less (least, zero)
    foreign = GreaterOrEqual (most, vocabulary)
    too_large = Where (foreign, most, zero)
    found = Where (none, least, too_large)
    size_before = Abs (fault)
    worst_before = ReduceMax <keepdims = 1> (size_before, zero)
    stopped_before = Greater (worst_before, zero)
    next_fault = Where (stopped_before, fault, found)
    size = Abs (next_fault)
    worst = ReduceMax <keepdims = 1> (size, zero)
    stopped = Greater (worst, zero)
    next_place = Where (stopped, place, right)
    running = Less (place, inputs)
    pass = Cast <to = 7> (running)
    counted = Add (passes, pass)
    next_passes = Where (stopped, passes, counted)

    reached = Gather (line_reached, end)
    known_cells = Unsqueeze (reached, one)
    further = Sub (cells, known_cells)
    has_token = Less (further, zero)
    some = Max (further, zero)
    rows_between = Div (some, across)
    rows_up = Add (rows_between, one)
    up = Mul (rows_up, across)
    above = Sub (cells, up)
    over_top = Less (above, zero)
    readable = Max (above, zero)
    taken = GatherElements <axis = 1> (fresh, readable)
    draft = Where (over_top, zero, taken)
    drafted = Where (has_token, fresh, draft)
    next_known = Where (stopped, known, drafted)

    start = Min (next_place, last)
    from_start = Unsqueeze (start, one)
    places = Add (from_start, offsets)
    window = Min (places, last)
    windows = Concat <axis = 0> (window, window)
    source = Gather (line_sources, window)
    special = Less (source, zero)
    source_cell = Max (source, zero)
    cell_token = GatherElements <axis = 1> (next_known, source_cell)
    special_token = Gather (line_tokens, window)
    token = Where (special, special_token, cell_token)
    rows_token = Concat <axis = 0> (token, token)
    is_first = Equal (windows, zero)
    first_token = Unsqueeze (first_tokens, one)
    tokens = Where (is_first, first_token, rows_token)
    grid_positions = Gather (line_positions, windows)
    shift = Unsqueeze (moved, one)
    positions = Add (grid_positions, shift)
    starts = Concat <axis = 0> (start, start)
    write_index = Add (starts, first_slot)
    target = Gather (line_targets, window)
    target_cell = Max (target, zero)
    guidance = GatherElements <axis = 1> (line_guidance, window)
"""
UNIFORMS = """
    uniforms = GatherElements <axis = 1> (cell_uniforms, target_cell)
"""
NOISE = """
    innermost = Constant <value_ints = [2]> ()
    asked = Unsqueeze (target_cell, innermost)
    noise = GatherND <batch_dims = 1> (cell_noise, asked)
"""
ONE_MASK = """
    first_row = Slice (write_index, zero, one, zero)
"""
MASK = """
    slots = Constant <value = int64[{slots}] {{{slot_numbers}}}> ()
    mask_from = Unsqueeze ({masked}, one)
    own_slots = Add (mask_from, offsets)
    two = Constant <value_ints = [2]> ()
    own_slot = Unsqueeze (own_slots, two)
    not_later = LessOrEqual (slots, own_slot)
    of_line = GreaterOrEqual (slots, first_slot)
    line_sees = And (not_later, of_line)
    prompt_sees = Unsqueeze (seen, one)
    sees = Or (line_sees, prompt_sees)
    mask = Unsqueeze (sees, one)
"""


def loop_graph(model: ModelFacts, sizes: LoopSizes, step: str) -> onnx.ModelProto:
    """The graph for engines of guided pairs; `step`: the kind of step graph."""
    parts = [ADVANCE, NOISE if step == "step-noise" else UNIFORMS]
    if not sizes.own_mask:
        parts += [ONE_MASK, MASK] if sizes.one_mask else [MASK]
    body = "".join(parts).format(
        inputs=sizes.inputs,
        last=sizes.inputs - 1,
        across=model.grid[1],
        vocabulary=model.vocabulary,
        cells=model.cells,
        numbers=", ".join(map(str, range(model.cells))),
        slots=sizes.slots,
        slot_numbers=", ".join(map(str, range(sizes.slots))),
        masked="first_row" if sizes.one_mask else "write_index",
    )
    return parsed_graph("loop", loop_contract(model, sizes, step), body)


def parsed_graph(name: str, contract: Contract, body: str) -> onnx.ModelProto:
    """A graph of that contract, from its nodes in ONNX's text form."""
    inputs, outputs = (", ".join(map(declared, part)) for part in (contract.inputs, contract.outputs))
    head = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n{name} ({inputs}) => ({outputs}) {{\n{body}}}'
    made = onnx.parser.parse_model(head)
    onnx.checker.check_model(made, full_check=True)
    return made


def free_shapes(contract: Contract, sizes: Sequence[Mapping[str, int]]) -> list[Shapes]:
    """For each of these sizes, the shapes of the inputs that have free dimensions."""
    free = [tensor for tensor in contract.inputs if not all(isinstance(size, int) for size in tensor.shape)]
    return [{tensor.name: tensor.sizes(one) for tensor in free} for one in sizes]


def declared(tensor: Tensor) -> str:
    return f"{TYPES[tensor.dtype]}[{', '.join(map(str, tensor.shape))}] {tensor.name}"


@dataclass(frozen=True, order=True)
class LoopProfile:
    images: int
    fed: int  # width of the call that has run
    width: int  # of the one that comes next

    @property
    def rows(self) -> int:
        return guided_rows(self.images, guided=True)


@dataclass(frozen=True)
class LoopPlan:
    sizes: LoopSizes
    profiles: tuple[LoopProfile, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What an identity says of it."""
        return {"loop_inputs": self.sizes.inputs, "loop_profiles": [asdict(profile) for profile in self.profiles]}

    def content(self, bundle: Bundle) -> bytes:
        """The graph as a file."""
        made = loop_graph(bundle.model, self.sizes, bundle.sampler.graph)
        content: bytes = made.SerializeToString(deterministic=True)
        return content

    def shapes(self, bundle: Bundle) -> list[Shapes]:
        """For each profile, the shapes of the inputs that have free dimensions."""
        contract = loop_contract(bundle.model, self.sizes, bundle.sampler.graph)
        return free_shapes(contract, [{**asdict(profile), "rows": profile.rows} for profile in self.profiles])


def plan_loop(
    bundle: Bundle, names: Sequence[str], images: Sequence[int], profiles: Profiles
) -> tuple[LoopPlan | None, str | None]:
    """What the loop graph of an engine is built for; or why there is none.

    `names`, `images`: schedules (none: all that the bundle stores) and batches of the engine, which has `profiles`.
    """
    schedules = [bundle.schedule(name) for name in names or bundle.specifications]
    lines = [(schedule, line) for schedule in schedules if (line := line_of(schedule)) is not None]
    if not lines:
        return None, "no schedule runs next-token decoding ahead on drafts"
    found: set[LoopProfile] = set()
    for schedule, _ in lines:
        first, later = loop_widths(make_plan(schedule, profiles.widths))
        found |= {LoopProfile(count, fed, later) for count in images for fed in (first, later)}
    if reason := noise_reason(bundle, images):
        return None, reason
    one_mask = not profiles.own_mask and not conditioned(bundle.model)
    sizes = LoopSizes(len(lines[0][1]), profiles.slots, one_mask, profiles.own_mask)
    return LoopPlan(sizes, tuple(sorted(found))), None


def noise_reason(bundle: Bundle, images: Sequence[int]) -> str | None:
    """Why the random numbers of all cells of so many images cannot lie on the device; None where they can."""
    size = 4 * max(images) * bundle.model.cells * bundle.model.vocabulary
    if bundle.sampler.graph == "step-noise" and size > LARGEST_NOISE:
        return f"the noise of {max(images)} images takes {size} bytes, allowed are {LARGEST_NOISE}"
    return None
