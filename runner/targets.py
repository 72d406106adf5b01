"""What engines are built for and run on, and the precision of each where nobody names one."""

from __future__ import annotations

from arforge.runner.errors import EngineError

DEFAULT_PRECISION = {"onnxruntime": "fp32", "tensorrt-rtx": "fp16", "tensorrt": "fp16"}
TARGETS = tuple(DEFAULT_PRECISION)


IN_BLOCKS = {"onnxruntime": ("int8", "int4"), "tensorrt-rtx": ("int4",), "tensorrt": ("int4",)}
"""The precisions of stored weights that a target runs as they are."""


def default_precision(target: str, stored: str = "fp32") -> str:
    """That of a bundle whose weights are stored so. Raises EngineError for a target that is not known."""
    if not isinstance(target, str) or target not in DEFAULT_PRECISION:
        raise EngineError(f"unknown target {target!r}: this arforge runs {', '.join(TARGETS)}")
    return stored if stored in IN_BLOCKS[target] else DEFAULT_PRECISION[target]
