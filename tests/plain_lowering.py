"""A bundle's step on ONNX Runtime with attention in plain products, whose tokens engines of fewer bits must have."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from arforge.engines.attention import decompose_attention
from arforge.engines.lowered_session import session_of
from arforge.runner import Runner, open_bundle
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine


def open_plain(path: Path) -> Runner:
    """The float16 graph; no library fuses its attention."""
    bundle = open_bundle(path)
    graph = bundle.graph("step", "fp16")
    model = ir.load(graph)
    decompose_attention(model)
    return Runner(bundle, OnnxRuntimeEngine(bundle, "fp16", session=session_of(model, graph.parent)))
