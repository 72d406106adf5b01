"""What the runner asks of an engine: memory to fill, and one call a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arforge.runner.bundle import ModelFacts
from arforge.runner.schedules.jacobi_windows import MeasuredWindow
from arforge.runner.step_graph import Contract, Tensor, contract

if TYPE_CHECKING:
    from arforge.runner.plan import Plan


@dataclass(frozen=True)
class StepBuffers:
    """Host memory of one kind of step; the runner fills it, the engine fills the outputs.

    Names, types and shapes are those of the step graph, which draws with `uniforms` or with `noise`. `outputs` is the
    number of queries where the model has them, else the width.
    """

    tokens: NDArray[np.int64]  # (rows, width)
    positions: NDArray[np.int64]  # (rows, width)
    write_index: NDArray[np.int64]  # (rows)
    mask: NDArray[np.bool_]  # (rows, 1, width, slots)
    guidance: NDArray[np.float32]  # (images, outputs)
    next_tokens: NDArray[np.int64]  # (images, outputs), output
    uniforms: NDArray[np.float32] | None = None  # (images, outputs)
    noise: NDArray[np.float32] | None = None  # (images, outputs, vocabulary)
    query_positions: NDArray[np.int64] | None = None  # (rows, queries)
    logits: NDArray[np.float32] | None = None  # (images, outputs, vocabulary), output of graphs for verification


@dataclass(frozen=True)
class RequestBuffers:
    """The inputs that stay the same in all steps of a request."""

    temperature: NDArray[np.float32]  # (images)
    top_k: NDArray[np.int64]  # (images)
    top_p: NDArray[np.float32]  # (images)
    condition: NDArray[np.float32] | None = None  # (rows, condition, dim), of models that take prompts


@dataclass(frozen=True)
class LoopProgress:
    """How far a loop has come, each int64 (images)."""

    place: NDArray[np.int64]  # inputs of the line that are right and in the cache
    passes: NDArray[np.int64]  # calls until each image was done
    fault: NDArray[np.int64]  # what came where a token should, by which all have stopped; 0: nothing


class Loop(Protocol):
    """Calls that follow one another on a device: each is made from what the one before it sampled."""

    def begin(self, tables: Mapping[str, NDArray[Any]]) -> None:
        """What a batch's calls are made of, by the names of `loop_contract`; the first call's buffers are filled."""

    def run(self) -> LoopProgress:
        """Some calls, from where the last ones ended. Raises EngineError if the runtime fails."""

    def tokens(self) -> NDArray[np.int64]:
        """Of all cells, (images, cells): decided, or drafts."""


@dataclass(frozen=True)
class TableProgress:
    """How far a loop over a table has come."""

    done: int  # calls
    fault: NDArray[np.int64]  # (images): what came first where a token should; 0: nothing
    fault_call: NDArray[np.int64]  # (images): in that call, where there is a fault


class TableLoop(Protocol):
    """The calls of a plan, one after another on a device, which keeps the tokens known so far."""

    def begin(self, given: Mapping[str, NDArray[Any]]) -> None:
        """What a batch differs in, by the names of `table_contract`."""

    def run(self) -> TableProgress:
        """Some calls, from where the last ones ended. Raises EngineError if the runtime fails."""

    def known(self) -> NDArray[np.int64]:
        """The tokens known so far, (rows, columns or more)."""


class Engine(Protocol):
    widths: tuple[int, ...] | None
    """Step widths that it was built for; None where it takes any."""
    prefill_widths: tuple[int, ...] | None
    """Numbers of tokens of a prompt that pass at once; None where it takes any."""
    largest_batch: int | None
    """Images that it decodes together at most; None where it takes any number."""
    one_mask: bool
    """Whether all images of a step must be at the same place: their rows see the same slots, or write to the same."""
    own_mask: bool
    """Whether the graph makes its mask: then all inputs see all before them, whatever the buffers' masks say."""
    exact_width: int | None
    """The widest step in which a token gets the bits that it gets alone; None where that is not known."""

    measured: tuple[MeasuredWindow, ...]
    """How far it may run ahead with next-token's tokens, and what that was found to take; empty where it was not."""

    @property
    def device(self) -> str:
        """What it runs on, for figures."""

    def bandwidth(self) -> float:
        """Bytes per second that it can read from memory there, measured now."""

    @property
    def cache_type(self) -> np.dtype[Any]:
        """The type of keys and values in the caches."""

    @property
    def settings(self) -> RequestBuffers:
        """Those of the images that were prepared for; the runner fills them before the first step."""

    def accept(self, plan: Plan) -> None:
        """Raise EngineError for a plan with steps or slots that it was not built for."""

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        """Make caches and settings of that shape ready, the first `zero_slots` slots zero.

        `condition`: rows of a prompt that steps read, where the model takes prompts. `lockstep`: the widest of the
        steps, in each of which all rows write to the same slots; 0: they may not. Of a prompt's passes: that of the
        steps that it is for.
        """

    def has_low_caches(self, lockstep: int) -> bool:
        """Whether caches of such steps have fewer bits than those of others: then they cannot stand for each other."""

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        """The memory of steps of that width, and of that many queries where the model has them."""

    def run(self, width: int, queries: int = 0) -> None:
        """Execute one step from those buffers. Raises EngineError if the runtime fails."""

    def loop(self, first: int, later: int, inputs: int) -> Loop | None:
        """What makes the calls of a batch that is prepared for, over a line of so many inputs; None: the host does.

        The first call has the width `first`, all others `later`.
        """

    def table_loop(self, plan: Plan) -> TableLoop | None:
        """What makes the calls of a batch that is prepared for, whose steps are settled; None: the host does."""

    def cache(self, name: str) -> NDArray[Any]:
        """What a cache holds now, (rows, kv_heads, slots, head_size); slots beyond those written may be left out."""

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        """Put keys or values, (kv_heads, count, head_size), into slots of a row, which were prepared as zero slots."""

    def close(self) -> None: ...


class StepMemory:
    """Allocates the host memory of a request's steps: buffers for each kind of step, settings for all of them."""

    def __init__(self, model: ModelFacts, graph: str) -> None:
        self._contract: Contract = contract(model, graph)
        self.images = self.rows = self.slots = self.condition = 0
        self._buffers: dict[tuple[int, int], StepBuffers] = {}  # by width and queries
        self.settings = self._make_settings()

    def prepare(self, images: int, rows: int, slots: int, condition: int = 1) -> bool:
        """Forget what was allocated for a request of another shape. Returns whether it was one."""
        if (self.images, self.rows, self.slots, self.condition) == (images, rows, slots, condition):
            return False
        self.images, self.rows, self.slots, self.condition = images, rows, slots, condition
        self.clear()
        self.settings = self._make_settings()
        return True

    def clear(self) -> None:
        self._buffers.clear()

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        """Those of that kind of step, new ones are zero, with guidance off; the same arrays until the shape changes."""
        if (width, queries) not in self._buffers:
            self._buffers[width, queries] = self._make_buffers(width, queries)
        return self._buffers[width, queries]

    def _make_buffers(self, width: int, queries: int) -> StepBuffers:
        kind = {"images": self.images, "rows": self.rows, "slots": self.slots, "width": width, "queries": queries}
        made = StepBuffers(**allocated(self._contract, StepBuffers.__annotations__, kind))
        made.guidance[:] = 1  # off
        return made

    def _make_settings(self) -> RequestBuffers:
        kind = {"images": self.images, "rows": self.rows, "condition": self.condition}
        made = RequestBuffers(**allocated(self._contract, RequestBuffers.__annotations__, kind))
        made.temperature[:], made.top_p[:] = 1, 1  # which with top-k 0 leaves the model's own distribution
        return made


def allocated(wanted: Contract, names: Iterable[str], dimensions: dict[str, int]) -> dict[str, NDArray[Any]]:
    """Zeros for the tensors of a contract that are called so."""
    chosen: list[Tensor] = [tensor for tensor in (*wanted.inputs, *wanted.outputs) if tensor.name in set(names)]
    return {tensor.name: np.zeros(tensor.sizes(dimensions), tensor.dtype) for tensor in chosen}
