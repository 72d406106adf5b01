"""What a step pays for its caches on ONNX Runtime's CPU provider: slots bound in vain, their type, and growing.

python bench/caches.py --output FILE.json [--family lumina] [--layers 4] [--rounds 9]

Attention of one token a row over caches of a published model, two rows, as the engine's graph has it: queries scaled
before, the mask of numbers, and so many layers that no processor's cache holds them. float16 caches are read by float16
attention, for which queries are cast. Times are of CPU, one thread, medians, of all the model's layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import MODELS
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arforge.runner.backends.onnxruntime_engine import GROWTH, place_of, rounded_slots
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.device import device_name

ROWS = 2
LOWEST = float(np.finfo(np.float16).min)
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def attention_graph(layers: int, heads: int, kv_heads: int, size: int, kind: str) -> bytes:
    """Each layer's queries are the answers of the one before."""
    nodes, inputs = [], [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [ROWS, heads, 1, size])]
    inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [ROWS, 1, 1, "slots"]))
    nodes.append(helper.make_node("Cast", ["mask"], ["typed_mask"], to=KINDS[kind]))
    for layer in range(layers):
        for name in ("k", "v"):
            shape = [ROWS, kv_heads, "slots", size]
            inputs.append(helper.make_tensor_value_info(f"{name}{layer}", KINDS[kind], shape))
        given = [f"q{layer}", f"k{layer}", f"v{layer}", "typed_mask"]
        nodes.append(helper.make_node("Cast", [f"x{layer}"], [f"q{layer}"], to=KINDS[kind]))
        nodes.append(helper.make_node("Attention", given, [f"a{layer}"], scale=1.0))
        nodes.append(helper.make_node("Cast", [f"a{layer}"], [f"x{layer + 1}"], to=TensorProto.FLOAT))
    end = helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [ROWS, heads, 1, size])
    graph = helper.make_graph(nodes, "attention", inputs, [end])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()


class Attention:
    def __init__(self, layers: int, sizes: tuple[int, int, int], kind: str) -> None:
        self.layers, (self.heads, self.kv_heads, self.size), self.kind = layers, sizes, kind
        content = attention_graph(layers, *sizes, kind)
        self.session = open_session(Path("attention.onnx"), threads=1, content=content)

    def milliseconds(self, used: int, bound: int, rounds: int) -> float:
        """A layer's, with that many slots of those that are bound in use."""
        random = np.random.default_rng(0)
        values: dict[str, NDArray[Any]] = {
            f"{name}{layer}": random.standard_normal((ROWS, self.kv_heads, bound, self.size), np.float32)
            for name in ("k", "v")
            for layer in range(self.layers)
        }
        values = {name: array.astype(self.kind) for name, array in values.items()}
        values["x0"] = random.standard_normal((ROWS, self.heads, 1, self.size), np.float32) / self.size**0.5
        mask = np.where(np.arange(bound) < used, 0, LOWEST).astype(np.float32)
        values["mask"] = np.broadcast_to(mask, (ROWS, 1, 1, bound)).copy()
        binding, result = self.session.io_binding(), np.empty_like(values["x0"])
        for name, array in values.items():
            binding.bind_input(name, *place_of(array))
        binding.bind_output(f"x{self.layers}", *place_of(result))
        taken = []
        for _ in range(rounds + 1):
            start = time.process_time()
            self.session.run_with_iobinding(binding)
            taken.append(time.process_time() - start)
        return 1000 * statistics.median(taken[1:]) / self.layers


def growing(kv_heads: int, size: int, slots: int, sizes: int) -> float:
    """Seconds that one cache takes to grow to `slots`, in so many sizes from a power of two to the next."""
    memory = np.zeros(ROWS * kv_heads * slots * size, np.float32)
    memory[:] = 1  # the system gives the memory now
    seconds, live = 0.0, GROWTH
    while live < slots:
        after = min(slots, rounded_slots(live + 1, GROWTH, sizes))
        old, new = (memory[: ROWS * kv_heads * n * size].reshape(-1, n * size) for n in (live, after))
        start = time.process_time()
        for head in reversed(range(len(old))):
            new[head, : live * size] = old[head]
        seconds += time.process_time() - start
        live = after
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--family", choices=MODELS, action="append", help="default lumina")
    parser.add_argument("--layers", type=int, default=4, help="that are timed")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    found = []
    for family in options.family or ["lumina"]:
        grid, config = MODELS[family]
        config = config.get("language_config", config)
        layers, heads, kv_heads = (
            config[f"num_{name}"] for name in ("hidden_layers", "attention_heads", "key_value_heads")
        )
        size = config["hidden_size"] // heads
        rows, columns = (int(side) for side in grid.split("x"))
        slots = rows * (columns + 1) + 48
        row: dict[str, Any] = {"family": family, "slots": slots, "attention_ms": []}
        for kind in KINDS:
            attention = Attention(options.layers, (heads, kv_heads, size), kind)
            for used, bound in ((100, 128), (100, 256), (100, slots), (slots // 2, slots // 2), (slots, slots)):
                taken = layers * attention.milliseconds(used, bound, options.rounds)
                row["attention_ms"].append({"type": kind, "used": used, "bound": bound, "ms": round(taken, 2)})
                print(family, row["attention_ms"][-1], flush=True)
        row["growing"] = []
        for sizes in (4, 8, 16, 32, slots):
            count = len({rounded_slots(needed, GROWTH, sizes) for needed in range(1, slots + 1)})
            seconds = round(2 * layers * growing(kv_heads, size, slots, sizes), 2)
            row["growing"].append({"sizes_an_octave": sizes, "sizes": count, "seconds": seconds})
            print(family, row["growing"][-1], flush=True)
        found.append(row)
    if options.output:
        record = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["python", *sys.argv],
            "machine": device_name(),
            "versions": {name: version(name) for name in ("arforge", "onnxruntime", "numpy")},
            "results": found,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
