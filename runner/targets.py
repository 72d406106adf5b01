"""What engines are built for and run on, and the precision of each where nobody names one."""

from __future__ import annotations

from arforge.runner.errors import EngineError

DEFAULT_PRECISION = {"onnxruntime": "fp32", "tensorrt-rtx": "fp16", "tensorrt": "fp16"}
TARGETS = tuple(DEFAULT_PRECISION)


def default_precision(target: str) -> str:
    """Raises EngineError for a target that is not known."""
    if not isinstance(target, str) or target not in DEFAULT_PRECISION:
        raise EngineError(f"unknown target {target!r}: this arforge runs {', '.join(TARGETS)}")
    return DEFAULT_PRECISION[target]
