"""Time by operator, from ONNX Runtime's own profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import open_session

if TYPE_CHECKING:
    import onnxruntime

KERNEL = "_kernel_time"


@dataclass(frozen=True)
class OperatorTime:
    operator: str
    calls: int
    seconds: float


class TracedEngine(OnnxRuntimeEngine):
    """Runs the step graph with the profiler on, which costs some microseconds an operator."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self._folder = TemporaryDirectory()
        super().__init__(*given, **settings)

    def _open(self, path: Path, content: bytes | None = None) -> onnxruntime.InferenceSession:
        self._traced = open_session(path, self._threads, content, trace=Path(self._folder.name) / "step")
        return self._traced

    def times(self) -> list[OperatorTime]:
        """Ends the profile; the operators of the graph that was opened last, the costliest first."""
        return read_trace(Path(self._traced.end_profiling()))

    def close(self) -> None:
        super().close()
        del self._traced
        self._folder.cleanup()


def read_trace(path: Path) -> list[OperatorTime]:
    """Add up the kernel times of a profiler's file, by operator."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for event in kernels(json.loads(path.read_text("utf-8"))):
        operator = event["args"]["op_name"]
        calls[operator] += 1
        seconds[operator] += event["dur"] / 1e6
    costliest = sorted(seconds, key=lambda operator: -seconds[operator])
    return [OperatorTime(operator, calls[operator], seconds[operator]) for operator in costliest]


def kernels(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events of kernels; those of an If hold its branch's, and are left out."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL) and event["args"].get("op_name") != "If":
            yield event
