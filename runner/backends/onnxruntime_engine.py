"""The ONNX Runtime engine: caches allocated once, bound as input and output of the step graph.

ONNX Runtime's attention reads every slot that it is given, so the caches are bound with the slots that are in use,
rounded up; when a step needs more, the slots move apart in their memory, a few times in a generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from arforge.runner.backends.engine import RequestBuffers, StepBuffers, StepMemory
from arforge.runner.backends.folded_graph import USUAL_ROWS, folded_content, latest_rows
from arforge.runner.backends.kernels import find_kernels
from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import Bundle
from arforge.runner.command_line import command_line
from arforge.runner.device import available_cores, device_name, streaming_bandwidth
from arforge.runner.errors import EngineError
from arforge.runner.plan import Plan
from arforge.runner.schedules.jacobi_windows import MeasuredWindow, measured_windows
from arforge.runner.step_graph import (
    Contract,
    cache_names,
    contract,
    difference,
    folded,
    guided_rows,
    read_again,
    typed,
    written_name,
)

if TYPE_CHECKING:
    import onnxruntime

GROWTH = 64  # slots by which the bound part of the caches grows at least
SIZES = 16  # of the bound part between a power of two and the next


@dataclass(frozen=True)
class FoldedGraph:
    """A graph with 8-bit caches for steps in which all rows write to the same slots."""

    path: Path
    width: int  # of the widest steps in which it is the quicker one


class Bound(NamedTuple):
    """What a step of one kind runs with, over the live slots."""

    binding: Any
    mask: NDArray[np.bool_]  # (rows, 1, width, live slots)


class OnnxRuntimeEngine:
    """Runs a bundle's graphs on the CPU provider."""

    largest_batch: int | None = None
    one_mask = False
    own_mask = False

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None = None,
        widths: tuple[int, ...] | None = None,
        graph: str | None = None,
        path: Path | None = None,
        session: onnxruntime.InferenceSession | None = None,
        extra_outputs: Sequence[str] = (),
        folded: FoldedGraph | None = None,
    ) -> None:
        """Load a step graph as it is. `threads`: CPU threads (None: one a core).

        `graph` None is the one that the bundle draws with, "step-logits" also gives the guided logits, for
        verification. `path`: a graph of the same inputs and outputs to run in place of the bundle's. `session`: one
        that is open already, whose graph may also have `extra_outputs`, which can be read after each step. `folded`:
        takes its place where it can, one of both open at a time. Raises EngineError for a graph with other inputs.
        """
        self.widths = widths
        self.exact_width: int | None = None
        self.measured: tuple[MeasuredWindow, ...] = ()
        self.prefill_widths: tuple[int, ...] | None = None  # widths pay for steps that come again and again
        self._bundle, self._threads = bundle, threads
        self._graph = graph = graph or bundle.sampler.graph
        self._path = path or bundle.graph(graph, precision)
        self._folded = folded
        self._folded_rows: tuple[int, ...] = ()  # numbers of rows that the open graph is folded for; none: it is not
        self._rows_used = USUAL_ROWS  # the latest first
        self._caches = cache_names(bundle.model.caches)
        self._again = read_again(bundle.model)  # of a folded graph
        self._extra = tuple(extra_outputs)
        self._steps = StepMemory(bundle.model, graph)
        self._live = 0  # slots that are bound
        self._memory: dict[str, NDArray[Any]] = {}  # flat, grown when needed, never shrunk
        self._bound: dict[tuple[int, int, int], Bound] = {}  # by width, queries and live slots
        self._masks: dict[tuple[int, int], NDArray[np.bool_]] = {}  # flat, by width and queries
        self._session: onnxruntime.InferenceSession | None = None
        if session is None:
            self._choose_graph(guided_rows(1, guided=True), low=self.has_low_caches(1))
        else:
            self._take(session)

    @classmethod
    def built(cls, bundle: Bundle, precision: str, threads: int | None = None) -> Self:
        """The engine that `arforge build` made, with arforge's own operators where this machine has them.

        Raises EngineError if it is not built or does not fit.
        """
        identity = bundle.engine("onnxruntime", precision)
        check_identity(bundle, identity)
        widths = identity.get("widths")
        own = identity.get("own_graph")
        if own is not None and find_kernels() is not None:  # a token's bits are the same in steps of any width
            engine = cls(bundle, precision, threads, None if widths is None else tuple(widths), path=bundle.path(own))
            engine.measured = measured_windows(identity, exact=True)
            return engine
        path = bundle.path(identity["graph"])
        folded = None
        if identity.get("cache_width"):
            folded = FoldedGraph(bundle.path(identity["cache_graph"]), identity["cache_width"])
        engine = cls(bundle, precision, threads, None if widths is None else tuple(widths), path=path, folded=folded)
        engine.exact_width = identity.get("exact_width")
        engine.measured = measured_windows(identity, exact=engine.exact_width is not None)
        return engine

    @property
    def device(self) -> str:
        return device_name()

    def bandwidth(self) -> float:
        return streaming_bandwidth(self._threads or available_cores())

    @property
    def cache_type(self) -> np.dtype[Any]:
        return self._cache_types[self._caches[0]]

    @property
    def settings(self) -> RequestBuffers:
        return self._steps.settings

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        self._choose_graph(rows, self.has_low_caches(lockstep))
        if self._steps.prepare(images, rows, slots, condition):
            self._unbind()
            self._allocate(rows * self._bundle.model.kv_heads * slots * self._bundle.model.head_size)
        self._live = self._rounded(zero_slots)
        for name in self._memory:
            self.cache(name)[:, :, :zero_slots] = 0

    def has_low_caches(self, lockstep: int) -> bool:
        return self._folded is not None and 0 < lockstep <= self._folded.width

    def _choose_graph(self, rows: int, low: bool) -> None:
        """Open the graph for those rows and caches, unless it is, and close the one that is open in its place."""
        if low:
            self._rows_used = latest_rows(self._rows_used, rows)
        if self._session is not None and (rows in self._folded_rows if low else not self._folded_rows):
            return
        self._unbind()
        self._steps.prepare(0, 0, 0, 0)
        self._memory.clear()
        self._session = None
        if self._folded is None or not low:
            self._take(self._open(self._path))
        else:
            path = self._folded.path
            session = self._open(path, folded_content(path, self._rows_used))
            types = {name: kind.name for name, kind in cache_types(session).items()}
            check_inputs(session, folded(contract(self._bundle.model, self._graph), types, self._again), path)
            self._session, self._folded_rows, self._cache_types = session, self._rows_used, cache_types(session)

    def _open(self, path: Path, content: bytes | None = None) -> onnxruntime.InferenceSession:
        return open_session(path, self._threads, content)

    def _take(self, session: onnxruntime.InferenceSession) -> None:
        """Have a session of the plain graph. Raises EngineError if its inputs are not the bundle's."""
        check_caches(session, self._bundle, self._path)
        types = cache_types(session)
        wanted = typed(contract(self._bundle.model, self._graph), {name: kind.name for name, kind in types.items()})
        check_inputs(session, wanted, self._path)
        self._session, self._folded_rows, self._cache_types = session, (), types

    def _allocate(self, size: int) -> None:
        try:
            for name in self._caches:
                if name not in self._memory or self._memory[name].size < size:
                    self._memory[name] = np.zeros(size, dtype=self._cache_types[name])
        except MemoryError:
            self._steps.prepare(0, 0, 0, 0)
            needed = size * sum(self._cache_types[name].itemsize for name in self._caches) / 2**30
            raise EngineError(f"no memory for caches of {needed:.1f} GiB: use a smaller batch") from None

    def loop(self, first: int, later: int, inputs: int) -> None:
        """The host makes the calls."""

    def accept(self, plan: Plan) -> None:
        """It takes steps of any shape."""

    def table_loop(self, plan: Plan) -> None:
        """As `loop`."""

    def cache(self, name: str) -> NDArray[Any]:
        """The live part of one cache, float32, float16 or int8 (rows, kv_heads, live slots, head_size)."""
        shape = (self._steps.rows, self._bundle.model.kv_heads, self._live, self._bundle.model.head_size)
        return self._memory[name][: np.prod(shape)].reshape(shape)

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        self.cache(name)[row, :, first : first + values.shape[1]] = values

    def _rounded(self, needed: int) -> int:
        """The slots to bind where `needed` are in use."""
        return min(self._steps.slots, rounded_slots(max(needed, 1), GROWTH))

    def _unbind(self) -> None:
        self._live = 0
        self._bound.clear()
        self._masks.clear()

    def _grow(self, needed: int) -> None:
        """Bind `needed` slots or more: every head's slots move to where they now begin, the last row's first."""
        before = {name: self.cache(name) for name in self._memory}
        self._live = self._rounded(needed)
        for name, old in before.items():
            new = self.cache(name)
            for row in reversed(range(len(old))):
                new[row, :, : old.shape[2]] = old[row]

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        return self._steps.buffers(width, queries)

    def run(self, width: int, queries: int = 0) -> None:
        buffers = self.buffers(width, queries)
        needed = max(int(buffers.write_index.max()) + width, queries)  # attention may take as many slots as queries
        if needed > self._live:
            self._grow(needed)
        kind = (width, queries, self._live)
        if kind not in self._bound:
            self._bound[kind] = self._bind(width, queries)
        binding, mask = self._bound[kind]
        np.copyto(mask, buffers.mask[..., : self._live])
        assert self._session is not None
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise EngineError(f"ONNX Runtime failed in a step of width {width}: {error}") from error

    def extra_outputs(self, width: int, queries: int = 0) -> dict[str, NDArray[Any]]:
        """Those that the last step of that kind gave; they last until the next."""
        if not self._extra:
            return {}
        binding = self._bound[width, queries, self._live].binding
        given = binding.get_outputs()[-len(self._extra) :]  # in the order in which they were bound
        return {name: value.numpy() for name, value in zip(self._extra, given, strict=True)}

    def close(self) -> None:
        self._bound.clear()
        self._steps.clear()
        self._memory.clear()
        self._session = None

    def _bind(self, width: int, queries: int) -> Bound:
        buffers = self.buffers(width, queries)
        shape = (self._steps.rows, 1, width, self._live)
        if (width, queries) not in self._masks:
            self._masks[width, queries] = np.zeros(buffers.mask.size, np.bool_)
        mask = self._masks[width, queries][: np.prod(shape)].reshape(shape)
        assert self._session is not None
        binding = self._session.io_binding()
        for name, array in {**vars(buffers), **vars(self.settings), "mask": mask}.items():
            if array is None:
                continue
            bind = binding.bind_output if name in ("next_tokens", "logits") else binding.bind_input
            bind(name, *place_of(array))
        for name in self._caches:
            cache = self.cache(name)
            place = place_of(cache.reshape(1, -1, *cache.shape[2:]) if self._folded_rows else cache)
            binding.bind_input(name, *place)
            for written in (written_name(name), *(self._again.get(name, ()) if self._folded_rows else ())):
                binding.bind_output(written, *place)
        for name in self._extra:
            binding.bind_output(name, "cpu")
        return Bound(binding, mask)


def rounded_slots(needed: int, growth: int, sizes: int = SIZES) -> int:
    """Slots to bind for those in use: few sizes, since growing moves all of them, and little that is read in vain."""
    unit = growth
    while 2 * sizes * unit < needed:
        unit *= 2
    return -(-needed // unit) * unit


def place_of(array: NDArray[Any]) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    """An array's memory as ONNX Runtime binds it."""
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data


def cache_types(session: onnxruntime.InferenceSession) -> dict[str, np.dtype[Any]]:
    """The types of a step graph's caches; float32 for those that no cache may have."""
    known = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}
    return {
        value.name: np.dtype(known.get(value.type, np.float32))
        for value in session.get_inputs()
        if "_cache_" in value.name
    }


def check_caches(session: onnxruntime.InferenceSession, bundle: Bundle, path: Path) -> None:
    """Raise EngineError unless the graph's caches are those of the manifest's model, which are allocated by it."""
    model = bundle.model
    expected = dict.fromkeys(cache_names(model.caches), (model.kv_heads, model.head_size))
    shapes = {value.name: value.shape for value in session.get_inputs() if "_cache_" in value.name}
    found = {name: (shape[1], shape[3]) if len(shape) == 4 else shape for name, shape in shapes.items()}
    if found != expected:
        name = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise EngineError(
            f"{path}: {name} has heads and head size {found.get(name, 'missing')}, the manifest says "
            f"{expected.get(name, 'none')}: export the bundle again"
        )


def check_inputs(session: onnxruntime.InferenceSession, wanted: Contract, path: Path) -> None:
    """Raise EngineError unless the graph takes what a step gives it."""
    problem = difference(wanted.inputs, contract_of(session).inputs)
    if problem:
        raise EngineError(f"{path}: input {problem}: export the bundle again")


def check_identity(bundle: Bundle, identity: dict[str, Any]) -> None:
    """Raise EngineError unless the engine was built from the bundle's present graphs."""
    for part in (
        "graph",
        "source",
        "cache_graph",
        "own_graph",
    ):  # the source is that of an engine with a graph of its own
        path = identity.get(part)
        if part != "graph" and path is None:
            continue
        present = bundle.sha256(path)
        if present is None or present != identity.get(f"{part}_sha256"):
            raise EngineError(
                f"the engine of {bundle.root} was built from another graph: rebuild it with "
                f"`{command_line('build', bundle.root, '--target', 'onnxruntime')}`"
            )
    widths, widest = identity.get("widths"), bundle.model.position_rows
    if widths is not None and not (
        isinstance(widths, list) and widths and all(type(w) is int and 0 < w <= widest for w in widths)
    ):
        raise EngineError(f"the engine of {bundle.root} lists widths {widths!r}: rebuild it")
