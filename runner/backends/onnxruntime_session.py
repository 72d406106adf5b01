"""Sessions of ONNX Runtime's CPU provider, and the library itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arforge.runner.backends.kernels import find_kernels, with_kernels
from arforge.runner.device import available_cores, machine_cores
from arforge.runner.errors import EngineError
from arforge.runner.step_graph import Contract, Tensor

if TYPE_CHECKING:
    import onnxruntime

MINIMUM = (1, 31)
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
# Quick sums of uint8 times int8 overflow on processors without VNNI. Where there is VNNI this changes nothing.
EXACT_SUMS = "session.x64quantprecision"
# It makes layers of one input share a quantizer, after which none of them becomes an integer product.
UNWANTED = ["CommonSubexpressionElimination"]
NO_SETTINGS: Mapping[str, str] = {}
TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
}
"""How the library writes the types of a contract."""


def load_library() -> Any:
    """Import onnxruntime; all that need it get it here. Raises EngineError if it is missing or too old for opset 24.

    Its own wheels send usage to their makers, from the import on: off, unless the environment says otherwise.
    """
    os.environ.setdefault(TELEMETRY_OFF, "1")
    try:
        import onnxruntime
    except ImportError as error:
        what = "is not installed"
        if not isinstance(error, ModuleNotFoundError):
            what = f"cannot be loaded ({error})"
        elif error.name != "onnxruntime":
            what = f"is not whole, {error.name} is missing"
        raise EngineError(f"onnxruntime {what}: pip install 'arforge[cpu]'") from None
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise EngineError(f"onnxruntime {onnxruntime.__version__} is too old: pip install 'onnxruntime>={wanted}'")
    return onnxruntime


def default_threads() -> int:
    """What a session is told where nobody names a number of threads.

    The library's own default (0) is a thread pinned to each core of the machine, so it hears of a limit where one is.
    """
    available = available_cores()
    return available if available < machine_cores() else 0


def open_session(
    path: Path,
    threads: int | None,
    content: bytes | None = None,
    trace: Path | None = None,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> onnxruntime.InferenceSession:
    """A session on the CPU provider. Raises EngineError if ONNX Runtime refuses the graph.

    `content`: a graph to run in place of the file's, with the weights beside the file. `trace`: where the library's
    profiler writes, as the beginning of a file name; None leaves it off. `settings`: of the library, beside ours.
    """
    runtime = load_library()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    for name, value in {EXACT_SUMS: "1", **settings}.items():
        options.add_session_config_entry(name, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    kernels = find_kernels()
    try:
        if kernels is not None and (renamed := with_kernels(content or path.read_bytes())) is not None:
            options.register_custom_ops_library(str(kernels.resolve()))
            content = renamed
        return runtime.InferenceSession(
            content or path, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED
        )
    except Exception as error:  # the binding's exception classes share no narrower public base
        raise EngineError(f"ONNX Runtime cannot load {path}: {error}. Export the bundle again") from error


def contract_of(session: onnxruntime.InferenceSession) -> Contract:
    """The inputs and outputs of the graph that a session has; types that no contract knows stay as they are written."""
    names = {written: dtype for dtype, written in TYPES.items()}
    inputs, outputs = (
        tuple(Tensor(value.name, names.get(value.type, value.type), tuple(value.shape)) for value in part)
        for part in (session.get_inputs(), session.get_outputs())
    )
    return Contract(inputs, outputs)
