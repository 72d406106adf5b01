"""One part of the GPU's checks, in a process of its own: `gpu_parts.py PART WORK STATE ITEM…`, started by gpu.py.

STATE is a file that says which items are done, and what is known of the one at hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_needs import LIBRARIES, lacking

PACKAGES = (
    *("arforge", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "torch"),
    *("cuda-bindings", "polygraphy", "onnx", "onnx-ir", "onnxscript", "numpy"),
)
SPEEDS = 3  # schedules that are timed, the first that the bundle stores
BATCH = 16


class State:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"done": {}, "so_far": {}}
        self.write()

    def note(self, figures: dict[str, Any]) -> None:
        """What is known so far of the item at hand."""
        self.content["so_far"] = figures
        self.write()

    def finish(self, item: str, figures: dict[str, Any]) -> None:
        self.content["done"][item], self.content["so_far"] = figures, {}
        self.write()

    def write(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(self.content))
        partial.replace(self.path)


def machine(state: State) -> None:
    """GPU, versions, what is installed and what is not, and how fast the GPU copies."""
    lacks = lacking()
    targets = [target for target in LIBRARIES if target not in lacks]
    found: dict[str, Any] = {"versions": versions(), "targets": targets, "lacks": lacks, "gpu": None}
    state.note(found)
    if needed := [name for name in ("numpy", "cuda.bindings") if name in lacks]:
        state.note({**found, "reason": f"{needed[0]} is missing: {lacks[needed[0]]}"})
        return
    from arforge.runner.backends.cuda import Gpu
    from arforge.runner.errors import ArforgeError
    from arforge.runner.profiling.sensors import Sensors

    try:
        gpu = Gpu()
    except ArforgeError as error:
        state.note({**found, "reason": str(error)})
        return
    found |= {"gpu": gpu.name, "compute_capability": gpu.compute_capability}
    state.note(found)
    found["bytes_per_second_of_a_copy"] = gpu.bandwidth()
    gpu.close()
    reading = Sensors.found().read()
    found["sensors"] = {"milliwatts": reading.milliwatts, "megahertz": reading.megahertz, "celsius": reading.celsius}
    state.note(found)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def do(part: str, item: str, work: Path, state: State) -> None:
    """One item of a part; what it finds goes to `state`. Raises whatever goes wrong."""
    from gpu_models import make

    kind, _, runtime = part.removesuffix(", more").partition(" ")
    if part.startswith("models"):
        make(item, work)
    elif kind == "speed":
        time_it(make("size", work), work, runtime, item, state)
    else:
        family, _, what = item.partition(" ")
        root = make(family, work)
        check_it(copied(root, work) if kind == "view" else root, family, runtime, what, state, view=kind == "view")


def check_it(root: Path, family: str, runtime: str, what: str, state: State, *, view: bool) -> None:
    """Tokens of a small model: `what` is a precision, "jacobi" or "verify"."""
    import gpu_measure
    from gpu_models import add_int8, schedules_of

    schedules = schedules_of(family)
    if what == "verify":
        verify(root, runtime, schedules, state, view=view)
    elif what == "jacobi":
        gpu_measure.tokens(root, runtime, "fp32", ["jacobi:8"], state.note)
    else:
        if what == "int8":
            add_int8(root, schedules[0])
        gpu_measure.tokens(root, runtime, what, schedules, state.note)


def time_it(root: Path, work: Path, runtime: str, item: str, state: State) -> None:
    """Speed of the model of full size: `item` is a precision, and what is special of it."""
    import gpu_measure
    from gpu_models import add_int8

    from arforge.runner.bundle import open_bundle

    precision, _, what = item.partition(" ")
    stored = open_bundle(root).specifications
    if what == "jacobi":
        gpu_measure.own_pace(root, runtime, precision, state.note)
        return
    if precision == "int8":
        add_int8(root, stored[-1])  # the fewest steps
    wishes = {}
    if what == "view":
        root, wishes = copied(root, work), {"attention": "view"}
    batch = BATCH if what == "batch" else 1
    if precision in ("fp16", "bf16") and runtime not in LIBRARIES:
        add_graphs(root, precision)
    chosen = stored[: SPEEDS if batch == 1 else SPEEDS - 1]
    gpu_measure.speed(root, runtime, precision, chosen, batch, state.note, **wishes)


def verify(root: Path, runtime: str, schedules: Sequence[str], state: State, *, view: bool) -> None:
    """`arforge verify` on a new fp16 engine."""
    from arforge.engines.tensorrt import BuildJob, build
    from arforge.engines.verify import verify_bundle

    said: list[str] = []
    build(BuildJob(root, runtime, "fp16", schedules=schedules, attention="view" if view else "auto"), print)

    def report(line: str) -> None:
        said.append(line)
        state.note({"said": said})

    verify_bundle(root, report, target=runtime)


def add_graphs(root: Path, precision: str) -> None:
    """The graphs of a precision, which the other runtimes share."""
    from dataclasses import replace

    from arforge.engines.low_precision import add_graphs as add
    from arforge.engines.low_precision import entries, has_graphs
    from arforge.runner.bundle.writer import changing, write_revision

    with changing(root) as bundle:
        if not has_graphs(bundle, precision):
            new = add(bundle, precision)
            write_revision(replace(bundle, graphs=(*bundle.graphs, *entries(bundle, precision))), new)


def copied(root: Path, work: Path) -> Path:
    """A copy, whose engine takes no other's place."""
    path = work / f"view-{root.name}"
    if not path.exists():
        shutil.copytree(root, path)
    return path


def main(part: str, work: str, path: str, *items: str) -> None:
    state = State(Path(path))
    if part == "machine":
        machine(state)
        state.finish(items[0], state.content["so_far"])
        return
    from arforge.runner.errors import ArforgeError

    for item in items:
        state.note({})
        try:
            do(part, item, Path(work), state)
            state.finish(item, state.content["so_far"])
        except ArforgeError as error:
            state.finish(item, {**state.content["so_far"], "error": str(error)})


if __name__ == "__main__":
    main(*sys.argv[1:])
