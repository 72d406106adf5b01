"""The TensorRT engine: caches in device memory at one address, and a program for each shape of step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.engine import Loop, RequestBuffers, StepBuffers, StepMemory, TableLoop
from arforge.runner.backends.tensorrt_caches import place_caches
from arforge.runner.backends.tensorrt_identity import (
    ELEMENT_TYPES,
    build_command,
    choose,
    has_views,
    lowered_of,
    reads_only,
)
from arforge.runner.backends.tensorrt_library import Library, load_library
from arforge.runner.backends.tensorrt_loop import BatchLoop, Loops
from arforge.runner.backends.tensorrt_placed_rows import PlacedRows
from arforge.runner.backends.tensorrt_program import LoadedEngine, Program
from arforge.runner.backends.tensorrt_table import BatchTable, Tables
from arforge.runner.bundle import Bundle
from arforge.runner.errors import EngineError
from arforge.runner.loop_graph import LOOK_EVERY
from arforge.runner.plan import Plan
from arforge.runner.schedules.jacobi_windows import MeasuredWindow
from arforge.runner.schedules.specification import parse
from arforge.runner.step_graph import cache_names, guided_rows, row_sizes, written_name


@dataclass(frozen=True)
class Step:
    """A program, and the runner's memory of it, of which what is the program's own needs no copy."""

    program: Program
    buffers: StepBuffers
    shared: bool  # whether the buffers are the program's own, but for the mask
    images: NDArray[np.int64]  # for every image of the program, the one of the request that it is, or repeats
    rows: NDArray[np.int64]  # and for every row


class TensorRTEngine:
    """Runs a bundle's TensorRT or TensorRT-RTX engine.

    It was built for guided pairs of rows, and for one mask, which all rows share since they are at the same step; of a
    model that takes prompts, each row has its own. A request without guidance has its rows in both halves, and a batch
    that it was not built for is filled up with copies of the last image.
    """

    def __init__(
        self, bundle: Bundle, identity: Mapping[str, Any], library: Library, gpu: Gpu, look_every: int = LOOK_EVERY
    ) -> None:
        """`look_every`: calls that the device makes by itself, where it can, between two looks of the host; 0: all."""
        self._bundle, self.identity, self.library, self.gpu = bundle, identity, library, gpu
        self._profiles = {
            (p["images"], p["width"], p["queries"], p["condition"]): i for i, p in enumerate(identity["profiles"])
        }
        self.batches = batches_of(identity)
        self.widths: tuple[int, ...] | None = tuple(identity["widths"])
        self.prefill_widths: tuple[int, ...] | None = tuple(identity["prefill_widths"]) or None
        self._prompt = max(profile["condition"] for profile in identity["profiles"])  # rows of the longest
        self.largest_batch: int | None = self.batches[-1]
        lowered = bundle.path(identity["lowered"]) if identity["strip_weights"] else None
        self._loaded = LoadedEngine(bundle.path(identity["engine"]), library, gpu, lowered)
        step = lowered_of(bundle, identity)
        taken = {tensor.name: tensor.shape for tensor in step.inputs}
        self._inputs = {n: shape[0] for n, shape in taken.items() if n != "condition" and "slots" not in shape}
        self.own_mask = "mask" not in taken
        self._shared_mask = not self.own_mask and taken["mask"][0] == 1
        self._one_place = has_views(identity)  # rows write to the same slots
        self.one_mask = self._shared_mask or self._one_place
        self.exact_width: int | None = None
        self.measured: tuple[MeasuredWindow, ...] = ()
        self._placed = self._place_rows() if reads_only(identity) else None
        addresses = self._placed.addresses if self._placed else None
        if self._placed is None:
            self._require_in_place()
        rows = self._rows(self.batches[-1])
        self._caches = place_caches(gpu, bundle.model, identity, self.cache_type, rows, addresses)
        self._programs: dict[tuple[int, int, int, int], Program] = {}  # as in _profiles
        self._memory = StepMemory(bundle.model, bundle.sampler.graph)
        self._steps: dict[tuple[int, int], Step] = {}  # width, queries -> of this request
        self._loops = Loops(bundle, identity, library, gpu, look_every)
        self._tables = Tables(bundle, identity, library, gpu)
        self._look_every = look_every

    @classmethod
    def built(cls, target: str, bundle: Bundle, precision: str, look_every: int = LOOK_EVERY) -> Self:
        """The engine that `arforge build` made. Raises EngineError if none is built, or fits, or there is no GPU."""
        identities = bundle.identities(target, precision)
        library, gpu = load_library(target), Gpu()
        identity = choose(bundle, identities, library.name, gpu.compute_capability)
        return cls(bundle, identity, library, gpu, look_every)

    @property
    def device(self) -> str:
        return f"{self.gpu.name}, compute capability {self.gpu.compute_capability}"

    def bandwidth(self) -> float:
        return self.gpu.bandwidth()

    @property
    def cache_type(self) -> np.dtype[Any]:
        name = ELEMENT_TYPES[self.identity["types"]]
        return np.dtype("V2" if name == "bfloat16" else name)  # numpy lacks it

    @property
    def settings(self) -> RequestBuffers:
        return self._memory.settings

    @property
    def captured(self) -> bool:
        """Whether every step that has run is a CUDA graph now."""
        programs = (program.captured for program in self._programs.values() if program.captured is not None)
        return all((*programs, self._loops.captured, self._tables.captured))

    def accept(self, plan: Plan) -> None:
        self._check_slots(plan.slots, partial(self._refuse_plan, plan))
        there = {(width, queries) for _, width, queries, _ in self._profiles}
        if missing := plan.kinds - there:
            kinds = ((step.width, step.queries) for step in plan.steps)
            first = next((kind for kind in kinds if kind in missing), min(missing))
            self._refuse_plan(plan, f"it was not built for {in_words(first)}")

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        if condition > max(self._prompt, 1):
            self._refuse(f"it was built for prompts of up to {1 + self._prompt} tokens, this one has {1 + condition}")
        self._check_slots(slots, lambda problem: self._refuse(problem, "--schedule"))
        if images > self.batches[-1]:
            self._refuse(f"it decodes up to {self.batches[-1]} images together, not {images}", "--images")
        if self._memory.prepare(images, rows, slots, condition):
            self._steps.clear()
        if zero_slots:
            self._caches.clear(self._rows(self._batch), zero_slots)

    def has_low_caches(self, lockstep: int) -> bool:
        return False

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        if (width, queries) not in self._steps:
            self._steps[width, queries] = self._step(width, queries)
        return self._steps[width, queries].buffers

    def run(self, width: int, queries: int = 0) -> None:
        step = self._steps[width, queries]
        self._stage(step)
        step.program.run()
        if self._placed:
            self._placed.put(width, step.program.inputs["write_index"])
        if not step.shared:
            next_tokens = step.buffers.next_tokens
            next_tokens[:] = step.program.outputs["next_tokens"][: len(next_tokens)]

    def loop(self, first: int, later: int, inputs: int) -> Loop | None:
        if not self._loops.fits(self._batch, first, later, inputs):
            return None
        for width in (first, later):
            self.buffers(width)
        steps = self._steps[first, 0], self._steps[later, 0]
        loop = self._loops.of(self._batch, first, later, (steps[0].program, steps[1].program))
        return BatchLoop(loop, self._memory.images, self._places, partial(self._stage, *steps))

    def table_loop(self, plan: Plan) -> TableLoop | None:
        if not self._tables.fits(self._batch, plan):
            return None
        kinds = [(step.width, step.queries) for step in plan.steps]
        programs = {kind: self._program(self._batch, *kind) for kind in dict.fromkeys(kinds)}
        table, between = self._tables.of(self._batch, plan, programs)
        stage = partial(self._stage_settings, table.settings.arrays, *self._places)
        steps = [programs[kind] for kind in kinds]
        return BatchTable(table, plan, steps, between, self._memory.images, self._places, self._look_every, stage)

    def _stage(self, *steps: Step) -> None:
        for step in steps:
            self._stage_one(step)

    def _stage_one(self, step: Step) -> None:
        """Put what the buffers and settings hold into the inputs of the step's program."""
        inputs, buffers = step.program.inputs, step.buffers
        for array, does, has in (
            (buffers.mask, "see", "one mask for all" if self._shared_mask else None),
            (buffers.write_index, "write to", "caches with slots first" if self._one_place else None),
        ):
            if has and (array[1:] != array[:-1]).any():
                raise EngineError(
                    f"the rows of a step {does} different slots, and {self.library.name} has {has}: decode images "
                    "that are at other steps apart"
                )
        self._stage_settings(inputs, step.images, step.rows)
        if not self.own_mask:
            mask = buffers.mask[:1] if self._shared_mask else buffers.mask[step.rows]
            inputs["mask"][..., : self._memory.slots] = mask
        given = {} if step.shared else vars(buffers)
        for name, first in self._inputs.items():
            if name in given:
                np.take(given[name], step.images if first == "images" else step.rows, axis=0, out=inputs[name])
        if self._placed and self.one_mask and (inputs["write_index"] != inputs["write_index"][0]).any():
            raise EngineError(f"rows with one mask write to slots {inputs['write_index'].tolist()}, expected the same")

    def _stage_settings(self, inputs: Mapping[str, NDArray[Any]], images: Any, rows: Any) -> None:
        """Put the request's settings into inputs of a program, whose images and rows are those of the request."""
        if "top_k" not in inputs and ((self.settings.top_k > 0).any() or (self.settings.top_p < 1).any()):
            self._refuse("it was built without top-k and top-p", "--filters")
        if self.settings.condition is not None:
            inputs["condition"][:, : self._memory.condition] = self.settings.condition[rows]
        for name in ("temperature", "top_k", "top_p"):
            if name in inputs:
                np.take(getattr(self.settings, name), images, axis=0, out=inputs[name])

    def cache(self, name: str) -> NDArray[Any]:
        """A copy of one cache of the present request, (rows, kv_heads, slots, head_size)."""
        memory, rows = self._memory, self._rows(self._batch)
        places = [int(np.flatnonzero(self._places[1] == row)[0]) for row in range(memory.rows)]
        found = [self._caches.read(name, place, rows, memory.slots) for place in places]
        self.gpu.synchronize()
        return np.stack(found)

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        places = np.flatnonzero(self._places[1] == row).tolist()
        self._caches.write(name, places, self._rows(self._batch), first, values)

    def close(self) -> None:
        self._loaded.close()
        self._loops.close()
        self._tables.close()
        self._programs.clear()
        self._steps.clear()
        self._memory.clear()
        self.gpu.close()

    @property
    def _batch(self) -> int:
        """Images that the programs of this request decode."""
        return min(batch for batch in self.batches if batch >= self._memory.images)

    @property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every image of the programs the one of this request that it is, or repeats; and for every row."""
        memory = self._memory
        images = np.minimum(np.arange(self._batch), memory.images - 1)
        return images, np.concatenate([images, images + (memory.rows - memory.images)])

    @staticmethod
    def _rows(images: int) -> int:
        """Of the programs that decode so many."""
        return guided_rows(images, guided=True)

    def _check_slots(self, slots: int, refuse: Callable[[str], NoReturn]) -> None:
        if slots > self.identity["slots"]:
            prompts = " and its prompts need" if self._prompt else " needs"
            refuse(f"it has {self.identity['slots']} cache slots, the schedule{prompts} {slots}")

    def _require_in_place(self) -> None:
        """Raise EngineError unless the engine writes each cache where it reads it."""
        for name in cache_names(self._bundle.model.caches):
            if self._loaded.engine.get_aliased_input_tensor(written_name(name)) != name:
                self._refuse(f"it does not update {name} in place")

    def _place_rows(self) -> PlacedRows:
        model, profiles = self._bundle.model, self.identity["profiles"]
        steps = {(self._rows(one["images"]), one["width"]) for one in profiles}
        slots, slot_bytes = int(self.identity["slots"]), self.cache_type.itemsize * model.head_size
        return PlacedRows(self.gpu, model.caches, model.kv_heads, slots, slot_bytes, steps)

    def _step(self, width: int, queries: int) -> Step:
        memory, batch = self._memory, self._batch
        program, buffers = self._program(batch, width, queries), memory.buffers(width, queries)
        if not self.own_mask:
            program.inputs["mask"][..., memory.slots :] = False
        images, rows = self._places
        shared = (memory.images, memory.rows) == (batch, len(rows))
        if shared:
            own = program.inputs | program.outputs
            places = {name: own[name] for name in vars(buffers) if name in own and name != "mask"}
            for name, array in places.items():
                array[...] = getattr(buffers, name)
            buffers = replace(buffers, **places)
        return Step(program, buffers, shared, images, rows)

    def _program(self, batch: int, width: int, queries: int) -> Program:
        read = 0 if self.settings.condition is None else self._memory.condition
        kinds = [kind for kind in self._profiles if kind[:3] == (batch, width, queries) and kind[3] >= read]
        if not kinds:
            self._refuse(f"it was not built for {in_words((width, queries))}", "--schedule")
        kind = min(kinds)  # with the least room for a prompt
        if kind not in self._programs:
            bound = self._placed.bound(self._rows(batch), width) if self._placed else self._caches.bound
            program = self._loaded.program(self._profiles[kind], bound)
            self._check_tensors(program, kind)
            self._programs[kind] = program
        return self._programs[kind]

    def _check_tensors(self, program: Program, kind: tuple[int, int, int, int]) -> None:
        """Raise EngineError unless what a program is given, and the tokens it gives, are what its identity says."""
        step, sizes = lowered_of(self._bundle, self.identity), {"slots": self.identity["slots"]}
        sizes |= row_sizes(self._bundle.model, kind[0])
        sizes |= zip(("images", "width", "queries", "condition"), kind, strict=True)
        names = set(self._loaded.names)
        for tensor in (*step.inputs, step.outputs[0]):
            shape = tensor.sizes(sizes)
            if tensor.name not in names or program.shape(tensor.name) != shape:
                self._refuse(f"its {tensor.name} is not {tensor.dtype} {list(shape)}")
        expected = sum(tensor.name in program.inputs for tensor in step.inputs)
        if len(program.inputs) != expected:
            self._refuse(f"it has {len(program.inputs)} inputs beside its caches, expected {expected}")

    def _refuse_plan(self, plan: Plan, problem: str) -> NoReturn:
        """Known cells take an engine that is built for them, and for the schedule that starts from them."""
        if not plan.schedule.kept:
            self._refuse(problem, "--schedule")
        schedule, options = plan.schedule.specification, self.identity["options"]
        built = {str(parse(name)) for name in options["schedule"] or self._bundle.specifications}
        option = None if str(parse(schedule)) in built else f"--schedule {schedule}"
        wanted = {**self.identity, "options": {**options, "known": True}}
        self._refuse(f"{problem}, as {len(plan.schedule.kept)} known cells need in {schedule}", option, wanted)

    def _refuse(self, problem: str, option: str | None = None, wanted: Mapping[str, Any] | None = None) -> NoReturn:
        """Raise EngineError with the command that builds an engine without the problem, like `wanted` (None: this)."""
        what = f"the {self.identity['target']} {self.identity['precision']} engine of {self._bundle.root}"
        hint = f" (with {option})" if option else ""
        command = build_command(self._bundle.root, wanted or self.identity)
        raise EngineError(f"{what}: {problem}; rebuild it{hint}: `{command}`")


def in_words(kind: tuple[int, int]) -> str:
    width, queries = kind
    return f"steps of {width} tokens" + (f" and {queries} queries" if queries else "")


def batches_of(identity: Mapping[str, Any]) -> list[int]:
    """The numbers of images that an engine was built for, rising."""
    return sorted({profile["images"] for profile in identity["profiles"]})
