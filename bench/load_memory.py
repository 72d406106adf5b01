"""What products with weights in blocks take in memory once ONNX Runtime has loaded them, and how long they run.

python bench/load_memory.py --work FOLDER --output FILE.json [--case 4:64 …] [--layers 8]

Matrices of Lumina's feed-forward layers (4096 and 11008) with random codes lie in a file of their own, as in a bundle.
Each case is loaded in a process of its own. Memory is counted as Linux does: `anonymous` is what the library holds, and
`mapped` what of the weights' file is resident too, which the system may drop. Times are of CPU, one thread, two rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.device import device_name

WIDE, NARROW = 11008, 4096
CASES = ("8:256", "8:128", "8:32", "4:128", "4:64", "4:32")
ALIGNMENT = 4096
ROUNDS = 7


def resident() -> dict[str, int]:
    """Bytes of this process's memory, by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in lines if words[0].startswith(("RssAnon", "RssFile"))}


class Writer:
    """Weights in one file, and their tensors by place."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.tensors = path, path.open("wb"), list[onnx.TensorProto]()

    def add(self, name: str, kind: int, values: NDArray[np.generic]) -> None:
        self.file.seek(-(-self.file.tell() // ALIGNMENT) * ALIGNMENT)
        facts = {"location": self.path.name, "offset": self.file.tell(), "length": values.nbytes}
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=values.shape, data_location="EXTERNAL")
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(values.tobytes())
        self.tensors.append(tensor)


def write_graph(work: Path, bits: int, block: int, layers: int) -> Path:
    random = np.random.default_rng(0)
    writer, nodes = Writer(work / "blocks.weights"), []
    for index in range(2 * layers):
        inputs, outputs = (NARROW, WIDE) if index % 2 == 0 else (WIDE, NARROW)
        shape = (outputs, inputs // block, block * bits // 8)
        writer.add(f"w{index}", TensorProto.UINT8, random.integers(0, 256, shape, dtype=np.uint8))
        writer.add(f"s{index}", TensorProto.FLOAT, np.full(shape[:2], 1e-3, np.float32))
        facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
        given = [f"x{index}", f"w{index}", f"s{index}"]
        nodes.append(helper.make_node("MatMulNBits", given, [f"x{index + 1}"], domain="com.microsoft", **facts))
    writer.file.close()
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", NARROW]) for name in ("x0", f"x{2 * layers}")
    ]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], writer.tensors)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), work / "blocks.onnx")
    return work / "blocks.onnx"


def measure(path: Path) -> dict[str, float]:
    """In a process of its own: load the graph and run it."""
    before = resident()
    start = time.process_time()
    session = open_session(path, threads=1)
    loaded = time.process_time() - start
    after = resident()
    name, taken = session.get_inputs()[0].name, []
    for _ in range(ROUNDS):
        start = time.process_time()
        session.run(None, {name: np.ones((2, NARROW), np.float32)})
        taken.append(time.process_time() - start)
    weights = path.with_suffix(".weights").stat().st_size
    return {
        "weights_bytes": weights,
        "anonymous": round((after["RssAnon"] - before["RssAnon"]) / weights, 3),
        "mapped": round((after["RssFile"] - before["RssFile"]) / weights, 3),
        "load_seconds": round(loaded, 2),
        "milliseconds": round(1000 * statistics.median(taken[1:]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", action="append", help="bits and inputs that share a scale, such as 4:64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args()
    if options.graph:
        print(json.dumps(measure(options.graph)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for case in options.case or CASES:
        bits, block = (int(part) for part in case.split(":"))
        path = write_graph(options.work, bits, block, options.layers)
        command = [sys.executable, __file__, "--work", str(options.work), "--graph", str(path)]
        found[case] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(case, json.dumps(found[case]), flush=True)
    if options.output:
        facts = {"device": device_name(), "library": f"onnxruntime {version('onnxruntime')}", "cases": found}
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
