"""Engines that also show what passes through them, for the runner to drive like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from arforge.runner.backends.engine import RequestBuffers, StepBuffers
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle
from arforge.runner.plan import Plan
from arforge.runner.schedules.jacobi_windows import MeasuredWindow

Arrays = Mapping[str, NDArray[np.float32]]
Observer = Callable[[Arrays], None]
"""Called after every step with the tapped tensors, [rows, inputs or queries, channels]; they last until the next."""


class TappedEngine(OnnxRuntimeEngine):
    """Runs an instrumented copy of the float32 step graph; the copy is never on disk."""

    def __init__(self, bundle: Bundle, tensors: Sequence[str], observe: Observer, threads: int | None = None) -> None:
        self._observe = observe
        path = bundle.graph(bundle.sampler.graph, "fp32")
        model = onnx.load(path, load_external_data=False)
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
        )
        session = open_session(path, threads, model.SerializeToString())
        super().__init__(bundle, "fp32", threads, session=session, extra_outputs=tensors)

    def run(self, width: int, queries: int = 0) -> None:
        super().run(width, queries)
        self._observe(self.extra_outputs(width, queries))


class PairedEngine:
    """Runs the float32 step-logits graph, and `follower`, an engine of another one, on the same inputs.

    `compare` is called after every step with the guided logits of both, float32 [images, outputs, vocabulary]; passes
    of prompts, whose logits nobody reads, are no steps. Each engine has caches of its own, which `cache` gives and
    `write_cache` takes as the heads of one: the first half are the leader's.
    """

    widths: tuple[int, ...] | None = None
    prefill_widths: tuple[int, ...] | None = None
    largest_batch: int | None = None
    one_mask = False
    own_mask = False
    exact_width: int | None = None
    measured: tuple[MeasuredWindow, ...] = ()

    def __init__(
        self,
        bundle: Bundle,
        follower: OnnxRuntimeEngine,
        compare: Callable[[NDArray[np.float32], NDArray[np.float32]], None],
        threads: int | None = None,
    ) -> None:
        self._leader = OnnxRuntimeEngine(bundle, "fp32", threads, graph="step-logits")
        self._follower, self._compare = follower, compare
        self._prompt = False  # whether a prompt passes

    @property
    def device(self) -> str:
        return self._leader.device

    def bandwidth(self) -> float:
        return self._leader.bandwidth()

    @property
    def cache_type(self) -> np.dtype[Any]:
        return self._leader.cache_type

    @property
    def settings(self) -> RequestBuffers:
        return self._leader.settings

    def prepare(
        self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1, lockstep: int = 0
    ) -> None:
        self._prompt = zero_slots == slots  # which leaves a schedule no slot
        for engine in (self._leader, self._follower):
            engine.prepare(images, rows, slots, zero_slots, condition, lockstep)

    def has_low_caches(self, lockstep: int) -> bool:
        return self._follower.has_low_caches(lockstep)

    def buffers(self, width: int, queries: int = 0) -> StepBuffers:
        return self._leader.buffers(width, queries)

    def run(self, width: int, queries: int = 0) -> None:
        mine, theirs = self.buffers(width, queries), self._follower.buffers(width, queries)
        copy(mine, theirs)
        copy(self.settings, self._follower.settings)
        self._leader.run(width, queries)
        self._follower.run(width, queries)
        assert mine.logits is not None
        assert theirs.logits is not None
        if not self._prompt:
            self._compare(mine.logits, theirs.logits)

    def loop(self, first: int, later: int, inputs: int) -> None:
        """The host makes the calls."""

    def accept(self, plan: Plan) -> None:
        """It takes steps of any shape."""

    def table_loop(self, plan: Plan) -> None:
        """As `loop`."""

    def cache(self, name: str) -> NDArray[Any]:
        return np.concatenate([self._leader.cache(name), self._follower.cache(name)], axis=1)

    def write_cache(self, name: str, row: int, first: int, values: NDArray[Any]) -> None:
        for engine, part in zip((self._leader, self._follower), np.split(values, 2), strict=True):
            engine.write_cache(name, row, first, part)

    def close(self) -> None:
        self._leader.close()
        self._follower.close()


def copy(source: StepBuffers | RequestBuffers, target: StepBuffers | RequestBuffers) -> None:
    for name, array in vars(source).items():
        if array is not None:
            np.copyto(getattr(target, name), array)
