"""Time of all stored products of a LlamaGen-L step, by the kind of product, on ONNX Runtime's CPU provider.

python bench/products.py --output bench/results/products.json [--kind "8-bit blocks of 256" …] [--rows 2 …]

Each matrix shape stands in a graph of its own, with copies enough that no cache holds them; a shape's median time is
taken as often as a step needs it. Rows are tokens times two (guidance). Weights are random. Kinds with kernels of
arforge need them compiled (`arforge kernels`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from arforge.runner.backends.kernels import OFF, PLACE
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.device import device_name, streaming_bandwidth

SHAPES = {(1024, 3072): 24, (1024, 1024): 24, (1024, 2816): 48, (2816, 1024): 24, (1024, 16384): 1}  # of a step
COPIED = 96 << 20  # weights, or more, of each shape's copies
CONTRIB = "com.microsoft"
SECONDS = 0.5  # of measuring, at least five runs
rng = np.random.default_rng(0)

Made = tuple[dict[str, np.ndarray], list[onnx.NodeProto]]  # stored tensors, and nodes from "x" to the output's name


def plain(inputs: int, outputs: int, name: str) -> Made:
    stored = {f"{name}.w": rng.standard_normal((inputs, outputs), dtype=np.float32)}
    return stored, [helper.make_node("MatMul", ["x", *stored], [name])]


def blocks(bits: int, size: int) -> Callable[[int, int, str], Made]:
    def make(inputs: int, outputs: int, name: str) -> Made:
        count = inputs // size
        stored = {
            f"{name}.w": rng.integers(0, 256, (outputs, count, size * bits // 8), dtype=np.uint8),
            f"{name}.s": 0.01 * rng.random((outputs, count), dtype=np.float32),
        }
        facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": size, "accuracy_level": 4}
        return stored, [helper.make_node("MatMulNBits", ["x", *stored], [name], domain=CONTRIB, **facts)]

    return make


def whole(inputs: int, outputs: int, name: str) -> dict[str, np.ndarray]:
    weight = rng.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    return {f"{name}.w": weight, f"{name}.s": 0.01 * rng.random(outputs, dtype=np.float32)}


def dynamic(inputs: int, outputs: int, name: str) -> Made:
    stored = whole(inputs, outputs, name)
    return stored, [helper.make_node("DynamicQuantizeMatMul", ["x", *stored], [name], domain=CONTRIB)]


def static(inputs: int, outputs: int, name: str) -> Made:
    stored = whole(inputs, outputs, name)
    weight, scale = stored
    given = {f"{name}.as": np.float32(0.02), f"{name}.az": np.uint8(128)}
    step, zero = given
    nodes = [
        helper.make_node("QuantizeLinear", ["x", step, zero], [f"{name}.q"]),
        helper.make_node("MatMulIntegerToFloat", [f"{name}.q", weight, step, scale, zero], [name], domain=CONTRIB),
    ]
    return {**stored, **given}, nodes


KINDS: dict[str, Callable[[int, int, str], Made]] = {
    "fp32": plain,
    "int8 whole, scales given": static,
    "int8 whole, one scale found": dynamic,
    **{f"8-bit blocks of {size}": blocks(8, size) for size in (32, 64, 128, 256)},
    **{f"4-bit blocks of {size}": blocks(4, size) for size in (64, 128)},
}
OURS = ", kernels of arforge"
KINDS |= {f"{kind}{OURS}": made for kind, made in KINDS.items() if "blocks" in kind}


def session_of(kind: str, inputs: int, outputs: int, copies: int, threads: int) -> Any:
    made = [KINDS[kind](inputs, outputs, f"y{index}") for index in range(copies)]
    values = [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(copies)]
    graph = helper.make_graph(
        [node for _, nodes in made for node in nodes],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        values,
        [numpy_helper.from_array(np.asarray(array), name) for stored, _ in made for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    with patch.dict(os.environ, {} if kind.endswith(OURS) else {PLACE: OFF}):
        return open_session(Path("products"), threads, model)


def milliseconds(kind: str, rows: list[int], threads: int) -> dict[int, float]:
    """Of all products of a step, by the number of rows."""
    total = dict.fromkeys(rows, 0.0)
    for (inputs, outputs), uses in SHAPES.items():
        copies = max(2, COPIED // (inputs * outputs))
        session = session_of(kind, inputs, outputs, copies, threads)
        for count in rows:
            binding = session.io_binding()
            binding.bind_cpu_input("x", rng.standard_normal((count, inputs), dtype=np.float32))
            kept = [np.zeros((count, outputs), np.float32) for _ in range(copies)]
            for index, array in enumerate(kept):
                binding.bind_output(f"y{index}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            taken: list[float] = []
            while len(taken) < 5 or sum(taken) < SECONDS:
                start = time.perf_counter()
                session.run_with_iobinding(binding)
                taken.append(time.perf_counter() - start)
            total[count] += 1000 * uses * statistics.median(taken) / copies
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--rows", action="append", type=int, help="default 2, 4, 6, 8, 16, 48")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "machine": device_name(),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy")},
        "threads": arguments.threads,
        "memory_bytes_per_second": streaming_bandwidth(arguments.threads),
        "multiply_adds_of_a_row": sum(inputs * outputs * uses for (inputs, outputs), uses in SHAPES.items()),
        "milliseconds": {},
    }
    for kind in arguments.kind or KINDS:
        found = milliseconds(kind, arguments.rows or [2, 4, 6, 8, 16, 48], arguments.threads)
        figures["milliseconds"][kind] = found
        print(f"{kind:28}", "  ".join(f"{rows} rows {value:6.1f} ms" for rows, value in found.items()), flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
