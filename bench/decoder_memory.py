"""Peak memory and time of decoding an image with Emu3's tokenizer at its published size, in bands of rows or at once.

python bench/decoder_memory.py --work FOLDER --output FILE.json [--channels 256] [--grid 90x90] [--bands 1 …]
    [--stored bf16]

Weights are random. Each graph is loaded and run once in a process of its own, with one thread, by the runner's own
session; its peak is the largest resident set. `digest` tells images apart: bands may move a value by one step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.device import device_name

MEGABYTE = 1 << 20


def write_graphs(work: Path, channels: int, cells: int, bands: list[int], stored: str) -> list[int]:
    """A graph for each number of bands, 0 for what an export chooses; returns the numbers."""
    import torch

    from arforge.export import exporter
    from arforge.export.image_tokenizers.attention import attend_in_blocks, blocks_for
    from arforge.export.image_tokenizers.bands import bands_for, decode_in_bands
    from arforge.export.image_tokenizers.graphs import trace_decoder
    from arforge.export.image_tokenizers.vision_vq import VisionVQConfig, VisionVQModel
    from arforge.export.storage import FLOATS, store_unrounded
    from arforge.export.trace import fake_module
    from arforge.export.weights import FLOATS as TYPES

    model, mode = fake_module(lambda: VisionVQModel(VisionVQConfig(channels=channels, encoder=False)))
    assert isinstance(model, VisionVQModel)
    with mode:
        whole = trace_decoder(model)
    attend_in_blocks(whole, blocks_for(cells))
    numbers = [number or bands_for(whole, cells) for number in bands]
    graphs = {f"bands-{number}": whole.clone() for number in numbers}
    for number, graph in zip(numbers, graphs.values(), strict=True):
        decode_in_bands(graph, number)
        store_unrounded(graph, lambda name: TYPES[FLOATS[stored]])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    random = torch.Generator().manual_seed(0)

    def source(name: str) -> torch.Tensor:
        values = torch.randn(shapes[name], generator=random)
        if name.endswith("running_var"):
            return 0.5 + values.abs()
        if name.endswith(("bias", "running_mean")) or values.dim() == 1:
            return 0.1 * values + (values.dim() == 1 and name.endswith("weight"))
        return values if "embedding" in name else values * (1.2 / values[0].numel() ** 0.5)

    exporter.write_graphs(graphs, "model.", "tokenizer.weights", source, work)
    return numbers


def decode(graph: Path, rows: int, columns: int) -> dict[str, Any]:
    """In a process of its own."""
    start = time.process_time()
    session = open_session(graph, threads=1)
    load_seconds = time.process_time() - start
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = np.random.default_rng(0).integers(0, 32768, (1, rows, columns))
    start = time.process_time()
    images = session.run(None, {"tokens": tokens})[0]
    return {
        "load_cpu_seconds": round(load_seconds, 2),
        "cpu_seconds": round(time.process_time() - start, 1),
        "loaded_megabytes": loaded // MEGABYTE,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MEGABYTE,
        "digest": hashlib.sha256(images.tobytes()).hexdigest()[:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--grid", default="90x90")
    parser.add_argument("--bands", type=int, action="append", help="default 1 and 0, which is what an export chooses")
    parser.add_argument("--stored", choices=("fp32", "bf16", "fp16"), default="fp32", help="what weights are stored as")
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args()
    rows, columns = (int(side) for side in options.grid.split("x"))
    if options.graph:
        print(json.dumps(decode(options.graph, rows, columns)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    numbers = write_graphs(options.work, options.channels, rows * columns, options.bands or [1, 0], options.stored)
    for number in numbers:
        graph = options.work / f"graphs/fp32/bands-{number}.onnx"
        command = [sys.executable, __file__, f"--work={options.work}", f"--grid={options.grid}", f"--graph={graph}"]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        given = {"channels": options.channels, "grid": options.grid, "bands": number, "stored": options.stored}
        found.append({**given, **json.loads(child.stdout)})
        print(json.dumps(found[-1]), flush=True)
    if options.output:
        record = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["python", *sys.argv],
            "machine": device_name(),
            "versions": {name: version(name) for name in ("arforge", "onnxruntime", "torch", "numpy")},
            "results": found,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
