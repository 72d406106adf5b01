"""Calls of a TensorRT step whose schedule is a table, one after another in CUDA graphs, with the table graph between
them (`table_graph.py`). A plan's tables stay on the device until another plan comes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.engine import TableProgress
from arforge.runner.backends.tensorrt_identity import table_of
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.backends.tensorrt_loop import Places, check_shapes
from arforge.runner.backends.tensorrt_program import LONGEST, Block, Launch, LoadedEngine, Program
from arforge.runner.bundle import Bundle
from arforge.runner.plan import Plan
from arforge.runner.step_graph import Contract, guided_rows
from arforge.runner.table_graph import NO_CALL, PROGRESS, TableSizes, next_name, table_of_plan

Kind = tuple[int, int]  # width and queries of a call
KEPT = 64  # graphs: those of plans with kept cells may never come again
LaunchKey = tuple[int, tuple[Program, ...], tuple[Program, ...]]  # which state is the present one, steps, table graphs
PER_PLAN = ("last_call", "call_slots", "call_inputs", "call_outputs", "call_drawn", "decided_by", "decided_at")
PER_CALL = ("input_columns", "input_positions", "input_sees", "output_cells", "output_asked")
PER_BATCH = ("call_guidance", "cell_uniforms", "cell_noise", "moved", "seen")


class TensorRTTable:
    """The calls of batches of one number of images.

    All kinds of step read their inputs at the same places, where the table graph writes them, and leave what they
    sample at one place, where it reads that. The state is there twice: a pass reads one and writes the other.
    """

    def __init__(
        self, gpu: Gpu, loaded: LoadedEngine, contract: Contract, sizes: Mapping[str, int], settings: Block
    ) -> None:
        """`loaded`: the table graph's engine. `sizes`: of what the contract leaves open, the largest of each.

        `settings`: those inputs of the step that no call changes.
        """
        self._gpu, self._loaded, self.settings = gpu, loaded, settings
        kinds = {tensor.name: (tensor.sizes(sizes), np.dtype(tensor.dtype)) for tensor in contract.inputs}
        made = [tensor for tensor in contract.outputs if not tensor.name.startswith("next_")]
        self._first = {tensor.name: tensor.shape[0] for tensor in contract.inputs}
        self._numbers = [name for name in kinds if name.endswith(("_numbers", "_zeros"))]

        def block(names: Sequence[str]) -> Block:
            return Block(gpu, {name: kinds[name] for name in names if name in kinds})

        self._tables = block((*PER_PLAN, *PER_CALL, *self._numbers))
        self._batch = block(PER_BATCH)
        self._known = [block(("known",)) for _ in range(2)]
        self._progress = [block(PROGRESS) for _ in range(2)]
        self._drawn = gpu.allocate(8 * sizes["drawn"])
        places = {t.name: int(np.prod(t.sizes(sizes))) * np.dtype(t.dtype).itemsize for t in made}
        self._given = {name: gpu.allocate(size) for name, size in places.items()}
        self._placed = {**self._tables.addresses, **self._batch.addresses, **self._given, "drawn": self._drawn}
        states = [{**k.addresses, **p.addresses} for k, p in zip(self._known, self._progress, strict=True)]
        self._turns = [
            states[turn] | {next_name(name): place for name, place in states[1 - turn].items()} for turn in range(2)
        ]
        self._shapes = {tensor.name: tensor.shape for tensor in (*contract.inputs, *contract.outputs)}
        self._sizes = sizes
        self._between: dict[Kind, Program] = {}  # the table graph before a call of that kind
        self._launches: OrderedDict[LaunchKey, Launch] = OrderedDict()
        self._plan: Plan | None = None  # whose tables lie on the device
        self.done = 0  # calls
        self._fetched = -1  # how many were when the tokens were fetched

    @property
    def captured(self) -> bool:
        """Whether what has run is CUDA graphs now."""
        return all(launch.captured is not False for launch in self._launches.values())

    def between(self, kind: Kind, profile: int) -> Program:
        """The table graph before a call of that kind. Raises EngineError unless the engine is of the contract."""
        if kind not in self._between:
            program = self._loaded.program(profile, self._placed | self._turns[0])
            sizes = {**self._sizes, "width": kind[0], "queries": kind[1]}
            wanted = {
                name: tuple(size if isinstance(size, int) else sizes[size] for size in shape)
                for name, shape in self._shapes.items()
            }
            check_shapes(self._loaded, program, wanted)
            self._between[kind] = program
        return self._between[kind]

    def begin(self, plan: Plan, given: Mapping[str, NDArray[Any]], places: Places, first: Program) -> None:
        """Put a batch of `plan` in place, and feed its first call. `first`: the table graph before that."""
        if plan is not self._plan:
            self._plan = None
            self._place_tables(plan)
            self._plan = plan
        spread = {"images": places[0], "rows": places[1]}
        for block in (self._batch, self._known[0]):
            for name, array in block.arrays.items():
                put(array, given[name][spread[str(self._first[name])]])
            block.upload()
        for name, array in self._progress[0].arrays.items():
            array[...] = -1 if name == "call" else 0
        self._progress[0].upload()
        self.settings.upload()
        first.execute(self._turns[0])
        self.done, self._fetched = 0, -1

    def run(self, steps: Sequence[Program], between: Sequence[Program], *, last: bool) -> TableProgress:
        """Make calls of these programs from where the last ones ended; before each its table graph has run.

        `between`: the table graphs behind each. `last`: no calls come after them, so the tokens are fetched as well.
        Raises EngineError if the engine or the GPU fails.
        """
        for first in range(0, len(steps), LONGEST):
            part = slice(first, min(first + LONGEST, len(steps)))
            self._launch((self._turn, tuple(steps[part]), tuple(between[part]))).start()
            self.done += part.stop - first
        progress = self._progress[self._turn]
        progress.download()
        if last:
            self._known[self._turn].download()
            self._fetched = self.done
        self._gpu.synchronize()
        found = {name: progress.arrays[name].copy() for name in PROGRESS[1:]}
        return TableProgress(self.done, **found)

    def known(self) -> NDArray[np.int64]:
        block = self._known[self._turn]
        if self._fetched != self.done:
            block.download()
            self._gpu.synchronize()
            self._fetched = self.done
        return block.arrays["known"].copy()

    @property
    def _turn(self) -> int:
        """Which state is the present one."""
        return (1 + self.done) % 2

    def _launch(self, key: LaunchKey) -> Launch:
        if key not in self._launches:
            turn, steps, between = key
            fed = self._given | self.settings.addresses | {"next_tokens": self._drawn}

            def queue() -> None:
                for index, (step, behind) in enumerate(zip(steps, between, strict=True)):
                    step.execute({name: fed[name] for name in (*step.inputs, *step.outputs)})
                    behind.execute(self._turns[(turn + index) % 2])

            def capturable() -> bool:
                return all(program.capturable() for program in (*steps, *between))

            self._launches[key] = Launch(self._gpu, queue, capturable)
            if len(self._launches) > KEPT:
                self._launches.popitem(last=False)[1].close()
        self._launches.move_to_end(key)
        return self._launches[key]

    def _place_tables(self, plan: Plan) -> None:
        tables = table_of_plan(plan)
        for name, array in self._tables.arrays.items():
            if name in self._numbers:
                array[...] = np.arange(len(array)) if name.endswith("_numbers") else 0
            else:
                put(array, tables[name], NO_CALL if name == "decided_by" else 0)
        self._tables.upload()


def put(array: NDArray[Any], given: NDArray[Any], rest: int = 0) -> None:
    """Into the beginning of an array that has room for more: of calls, inputs, columns, slots."""
    array[...] = rest
    array[tuple(map(slice, given.shape))] = given


@dataclass(frozen=True)
class BatchTable:
    """The calls of one batch of a plan as a request sees it, whose images may be fewer than the programs'."""

    table: TensorRTTable
    plan: Plan
    steps: Sequence[Program]  # of every call
    between: Sequence[Program]  # the table graphs before every call, and behind the last
    images: int
    places: Places
    look_every: int  # calls; 0: all
    stage: Callable[[], object]  # puts settings in place

    def begin(self, given: Mapping[str, NDArray[Any]]) -> None:
        self.stage()
        self.table.begin(self.plan, given, self.places, self.between[0])

    def run(self) -> TableProgress:
        first = self.table.done
        end = min(first + (self.look_every or len(self.steps)), len(self.steps))
        last = end == len(self.steps)
        found = self.table.run(self.steps[first:end], self.between[first + 1 : end + 1], last=last)
        return replace(found, fault=found.fault[: self.images], fault_call=found.fault_call[: self.images])

    def known(self) -> NDArray[np.int64]:
        rows = [int(np.flatnonzero(self.places[1] == row)[0]) for row in range(1 + self.places[1].max())]
        return self.table.known()[rows]


class Tables:
    """The calls by tables that an engine has, whose table graph is loaded when it is first wanted."""

    def __init__(self, bundle: Bundle, identity: Mapping[str, Any], library: Library, gpu: Gpu) -> None:
        self._bundle, self._identity, self._library, self._gpu = bundle, identity, library, gpu
        self._loaded: LoadedEngine | None = None
        self._made: dict[int, TensorRTTable] = {}  # by images

    @property
    def captured(self) -> bool:
        return all(table.captured for table in self._made.values())

    def fits(self, batch: int, plan: Plan) -> bool:
        """Whether the engine has room for the tables of a plan, and all of its calls for that batch."""
        if self._identity.get("table") is None or plan.schedule.cells != self._bundle.model.cells:
            return False
        profiles = self._profiles
        return self._sizes.hold(TableSizes.of(plan)) and all(profile_of(batch, kind) in profiles for kind in plan.kinds)

    def of(self, batch: int, plan: Plan, steps: Mapping[Kind, Program]) -> tuple[TensorRTTable, list[Program]]:
        """The table of that batch, and its graphs before each call of a plan and behind the last."""
        contract = table_of(self._bundle, self._identity)
        if self._loaded is None:
            self._loaded = LoadedEngine(self._bundle.path(self._identity["table"]), self._library, self._gpu)
        if batch not in self._made:
            sizes = {
                "images": batch,
                "rows": guided_rows(batch, guided=True),
                "width": max(one["width"] for one in self._profiles),
                "queries": max(one["queries"] for one in self._profiles),
                "drawn": batch * self._sizes.most,
            }
            made = {tensor.name for tensor in contract.outputs}
            step = next(iter(steps.values()))
            settings = {n: (array.shape, array.dtype) for n, array in step.inputs.items() if n not in made}
            block = Block(self._gpu, settings)
            self._made[batch] = TensorRTTable(self._gpu, self._loaded, contract, sizes, block)
        table = self._made[batch]
        profiles = self._profiles
        made_for = {kind: table.between(kind, profiles.index(profile_of(batch, kind))) for kind in plan.kinds}
        between = [made_for[step.width, step.queries] for step in plan.steps]
        return table, [*between, between[-1]]

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
        self._made.clear()

    @property
    def _sizes(self) -> TableSizes:
        return TableSizes(**self._identity["table_sizes"])

    @property
    def _profiles(self) -> list[dict[str, int]]:
        return list(self._identity["table_profiles"])


def profile_of(batch: int, kind: Kind) -> dict[str, int]:
    """That of the table graph before a call of that kind."""
    return {"images": batch, "width": kind[0], "queries": kind[1]}
