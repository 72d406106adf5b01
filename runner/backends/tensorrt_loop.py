"""Calls of a TensorRT step one after another in one CUDA graph, with the loop graph between them (`loop_graph.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.cuda import Gpu
from arforge.runner.backends.engine import LoopProgress
from arforge.runner.backends.tensorrt_identity import loop_of
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.backends.tensorrt_program import LONGEST, Block, Launch, LoadedEngine, Program
from arforge.runner.bundle import Bundle
from arforge.runner.errors import EngineError
from arforge.runner.loop_graph import LOOK_EVERY, PROGRESS, STATE, next_name
from arforge.runner.step_graph import Contract, guided_rows

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""For every image of a program the one of the request that it is, or repeats; and for every row."""


class TensorRTLoop:
    """The loop of one batch and pair of widths.

    The state is there twice: a pass reads one and writes the other. What the loop graph makes for the step lies where
    the step reads it, and what the step samples is read where it lies.
    """

    def __init__(
        self,
        gpu: Gpu,
        loaded: LoadedEngine,
        contract: Contract,
        sizes: Mapping[str, int],
        profiles: tuple[int, int],
        steps: tuple[Program, Program],
        passes: int,
    ) -> None:
        """`profiles`, `steps`: behind and of the first call, behind and of the later ones.

        `loaded`: the loop graph's engine. `passes` of a launch are an even number, so that the state ends where it
        began. Raises EngineError unless it is of that contract and `sizes`.
        """
        self._gpu, self._loaded, self._steps, self._passes = gpu, loaded, steps, passes
        kinds = {tensor.name: (tensor.sizes(sizes), np.dtype(tensor.dtype)) for tensor in contract.inputs}
        self._shapes = {name: shape for name, (shape, _) in kinds.items() if name != "drawn"}
        self._spread_over = {tensor.name: tensor.shape[0] for tensor in contract.inputs}
        self._tables = Block(gpu, {name: kinds[name] for name in kinds if name not in (*STATE, "drawn")})
        self._width = Block(gpu, {"fed": kinds["fed"]})  # of the first call
        self._known = [Block(gpu, {"known": kinds["known"]}) for _ in range(2)]
        self._progress = [Block(gpu, {name: kinds[name] for name in PROGRESS}) for _ in range(2)]
        made = {tensor.name for tensor in contract.outputs}
        self._given = {name: place for name, place in steps[1].input.addresses.items() if name in made}
        self._settings = [name for name in steps[1].inputs if name not in made]  # that no pass changes
        self._turns = [self._between(steps[1], profiles[1], turn, {}) for turn in range(2)]
        self._first = self._turns[0]
        if steps[0] is not steps[1]:
            self._first = self._between(steps[0], profiles[0], 0, self._width.addresses)
        self._beginning = Launch(gpu, self._begin, self._capturable)
        self._going_on = Launch(gpu, self._go_on, self._capturable)
        self._begun = False

    @property
    def captured(self) -> bool:
        """Whether what has run is CUDA graphs now."""
        return all(launch.captured is not False for launch in (self._beginning, self._going_on))

    def begin(self, tables: Mapping[str, NDArray[Any]], places: Places) -> None:
        """`tables` of the request's images and rows; the inputs of the first call are in place."""
        spread = {"images": places[0], "rows": places[1]}
        for name, array in self._tables.arrays.items():
            over = self._spread_over[name]
            given = tables[name][spread[over]] if over in spread else tables[name]
            if name == "fed":
                self._width.arrays[name][:], given = given[:1], given[1:]
            array[...] = 0
            given = given[: len(array)]  # where one mask is all rows'
            array[tuple(map(slice, given.shape))] = given  # of as many slots as the request has
        for block in (self._known[0], self._progress[0]):
            for array in block.arrays.values():
                array[...] = 0
        self._begun = False

    def run(self) -> LoopProgress:
        launch = self._going_on if self._begun else self._beginning
        self._begun = True
        launch.run()
        return LoopProgress(**{name: array.copy() for name, array in self._progress[0].arrays.items()})

    def tokens(self) -> NDArray[np.int64]:
        self._known[0].download()
        self._gpu.synchronize()
        return self._known[0].arrays["known"].copy()

    def _between(self, fed: Program, profile: int, turn: int, width: Mapping[str, int]) -> Program:
        """The loop graph behind `fed`, from the state `turn` to the other one."""
        states = [
            {**known.addresses, **progress.addresses}
            for known, progress in zip(self._known, self._progress, strict=True)
        ]
        placed = {
            **self._tables.addresses,
            **width,
            **states[turn],
            **{next_name(name): address for name, address in states[1 - turn].items()},
            **self._given,
            "drawn": fed.output.addresses["next_tokens"],
        }
        program = self._loaded.program(profile, placed)
        check_shapes(self._loaded, program, self._shapes)
        return program

    def _begin(self) -> None:
        first, later = self._steps
        first.input.upload()
        if first is not later:
            later.input.upload_some(self._settings)
            self._width.upload()
        for block in (self._tables, self._known[0], self._progress[0]):
            block.upload()
        first.execute()
        self._first.execute()
        self._queue(range(1, self._passes))

    def _go_on(self) -> None:
        self._queue(range(self._passes))

    def _queue(self, passes: range) -> None:
        for index in passes:
            self._steps[1].execute()
            self._turns[index % 2].execute()
        self._progress[0].download()

    def _capturable(self) -> bool:
        return all(program.capturable() for program in (*self._steps, self._first, *self._turns))


def check_shapes(loaded: LoadedEngine, program: Program, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise EngineError unless the program's tensors are of these shapes, since they lie in memory of these sizes."""
    for name, shape in wanted.items():
        if name not in loaded.names or program.shape(name) != shape:
            raise EngineError(f"{loaded.path} does not take {name} as {list(shape)}: build the engine again")


@dataclass(frozen=True)
class BatchLoop:
    """A loop as a request sees it, whose images may be fewer than the programs'."""

    loop: TensorRTLoop
    images: int
    places: Places
    stage: Callable[[], object]  # puts the first call's inputs in place

    def begin(self, tables: Mapping[str, NDArray[Any]]) -> None:
        self.stage()
        self.loop.begin(tables, self.places)

    def run(self) -> LoopProgress:
        found = self.loop.run()
        return LoopProgress(found.place[: self.images], found.passes[: self.images], found.fault[: self.images])

    def tokens(self) -> NDArray[np.int64]:
        return self.loop.tokens()[: self.images]


class Loops:
    """All loops of an engine, whose loop graph is loaded when it is first wanted."""

    def __init__(
        self, bundle: Bundle, identity: Mapping[str, Any], library: Library, gpu: Gpu, look_every: int
    ) -> None:
        """`look_every`: calls between two looks of the host, made even, and no more than a graph has; in place of 0,
        all, the default: none knows how many an image takes.
        """
        self._bundle, self._identity, self._library, self._gpu = bundle, identity, library, gpu
        calls = min(look_every or LOOK_EVERY, LONGEST)
        self._passes = calls + calls % 2
        self._loaded: LoadedEngine | None = None
        self._made: dict[tuple[Program, Program], TensorRTLoop] = {}

    @property
    def captured(self) -> bool:
        return all(loop.captured for loop in self._made.values())

    def fits(self, batch: int, first: int, later: int, inputs: int) -> bool:
        """Whether the engine has a loop for that batch, widths and line."""
        if self._identity.get("loop") is None or self._identity["loop_inputs"] != inputs:
            return False
        return all(profile in self._identity["loop_profiles"] for profile in profiles_of(batch, first, later))

    def of(self, batch: int, first: int, later: int, steps: tuple[Program, Program]) -> TensorRTLoop:
        if steps not in self._made:
            if self._loaded is None:
                path = self._bundle.path(self._identity["loop"])
                self._loaded = LoadedEngine(path, self._library, self._gpu)
            enter, turn = (self._identity["loop_profiles"].index(one) for one in profiles_of(batch, first, later))
            sizes = {"images": batch, "rows": guided_rows(batch, guided=True), "fed": later, "width": later}
            contract = loop_of(self._bundle, self._identity)
            self._made[steps] = TensorRTLoop(
                self._gpu, self._loaded, contract, sizes, (enter, turn), steps, self._passes
            )
        return self._made[steps]

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
        self._made.clear()


def profiles_of(batch: int, first: int, later: int) -> list[dict[str, int]]:
    """Those of the loop graph behind the first call and behind the later ones."""
    return [{"images": batch, "fed": fed, "width": later} for fed in (first, later)]
