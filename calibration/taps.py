"""Engines that also show what passes through them, for the runner to drive like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from arforge.runner.backends.engine import RequestBuffers, StepBuffers
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle

Arrays = Mapping[str, NDArray[np.float32]]
Observer = Callable[[Arrays], None]
"""Called after every step with the tapped tensors, [rows, inputs or queries, channels]; they last until the next."""


class TappedEngine(OnnxRuntimeEngine):
    """Runs an instrumented copy of the float32 step graph; the copy is never on disk."""

    def __init__(self, bundle: Bundle, tensors: Sequence[str], observe: Observer, threads: int | None = None) -> None:
        self._observe = observe
        path = bundle.graph("step", "fp32")
        model = onnx.load(path, load_external_data=False)
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
        )
        session = open_session(path, threads, model.SerializeToString())
        super().__init__(bundle, "fp32", threads, session=session, extra_outputs=tensors)

    def run(self, width: int, queries: int = 0) -> None:
        super().run(width, queries)
        self._observe(self.extra_outputs(width, queries))


class PairedEngine(OnnxRuntimeEngine):
    """Runs the float32 step-logits graph, and `follower`, an engine of another one, on the same inputs.

    `compare` is called after every step with the guided logits of both, float32 [images, outputs, vocabulary].
    """

    def __init__(
        self,
        bundle: Bundle,
        follower: OnnxRuntimeEngine,
        compare: Callable[[NDArray[np.float32], NDArray[np.float32]], None],
        threads: int | None = None,
    ) -> None:
        super().__init__(bundle, "fp32", threads, graph="step-logits")
        self._follower, self._compare = follower, compare

    def prepare(self, images: int, rows: int, slots: int, zero_slots: int, condition: int = 1) -> None:
        super().prepare(images, rows, slots, zero_slots, condition)
        self._follower.prepare(images, rows, slots, zero_slots, condition)

    def run(self, width: int, queries: int = 0) -> None:
        mine, theirs = self.buffers(width, queries), self._follower.buffers(width, queries)
        copy(mine, theirs)
        copy(self.settings, self._follower.settings)
        super().run(width, queries)
        self._follower.run(width, queries)
        assert mine.logits is not None
        assert theirs.logits is not None
        self._compare(mine.logits, theirs.logits)

    def close(self) -> None:
        super().close()
        self._follower.close()


def copy(source: StepBuffers | RequestBuffers, target: StepBuffers | RequestBuffers) -> None:
    for name, array in vars(source).items():
        if array is not None:
            np.copyto(getattr(target, name), array)
