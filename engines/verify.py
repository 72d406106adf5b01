"""Checks a bundle without torch: structure, hashes, schedules, graph contracts, engines, and a short real run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine, cache_names
from arforge.runner.backends.onnxruntime_session import open_session
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.errors import EngineError, VerificationError
from arforge.runner.lockstep import lockstep, written
from arforge.runner.plan import PlannedStep
from arforge.runner.runner import Runner

Report = Callable[[str], None]
FLOAT, INT64, BOOL, UINT8 = "tensor(float)", "tensor(int64)", "tensor(bool)", "tensor(uint8)"
CACHES = {"fp32": FLOAT, "int8": FLOAT, "fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
COMPARED_STEPS = 12  # of each stored schedule
TINY = float(np.finfo(np.float32).tiny)
ROUNDING = 1e-3  # of keys and values of float32 graphs, relative to the largest that a step writes
Contract = dict[str, tuple[str, list[str | int]]]


def verify_bundle(root: Path, report: Report, target: str | None = None) -> Bundle:
    """Run every torch-free check, reporting each; raises the ArforgeError of the first that fails.

    `target`: look into the engines of that target alone, and fail where there is none, or its library is missing.
    """
    bundle = open_bundle(root)
    report(f"structure: {len(bundle.files)} files, manifest, paths and sizes")
    bundle.check_hashes()
    report("hashes: every file matches its sha256")
    for name in bundle.specifications:
        schedule = bundle.schedule(name)
        report(f"schedule {schedule.specification}: {len(schedule.steps)} steps decide {schedule.cells} cells")
    check_data(bundle, report)
    for graph in bundle.graphs:
        check_contract(bundle, graph.name, graph.precision, bundle.path(graph.path))
        report(f"graph {graph.name} {graph.precision}: inputs and outputs as the format says")
    engines = [engine for engine in bundle.engines if target in (None, engine.target)]
    if target is not None and not engines:
        raise EngineError(f"{root} has no {target} engine: build it with `arforge build {root} --target {target}`")
    for engine in engines:
        if engine.target == "onnxruntime":
            check_engine(bundle, engine.target, engine.precision)
            report(f"engine {engine.target} {engine.precision}: same tokens alone and in a batch")
            if engine.precision == "fp32":
                report(f"engine {engine.target} fp32: {check_own_graph(bundle)}")
        else:
            from arforge.engines.tensorrt_verify import verify_engine

            verify_engine(bundle, engine, report, required=target is not None)
    return bundle


def check_data(bundle: Bundle, report: Report) -> None:
    """Look where the graphs' weights lie, before a runtime does; engines' own graphs too."""
    try:
        from arforge.engines.graph_data import check_graphs
    except ImportError:
        report("graphs' data: not looked at (no onnx-ir; pip install onnx-ir)")
        return
    paths = [path for path in bundle.files if path.endswith(".onnx")]
    check_graphs(bundle, paths)
    report(f"graphs' data: {len(paths)} graphs read inside their files, tensors apart")


def check_contract(bundle: Bundle, name: str, precision: str, path: Path) -> None:
    """Raise VerificationError unless the graph has exactly the inputs and outputs of its kind."""
    expected = contract(bundle, name, precision)
    for what, wanted, found in zip(("input", "output"), expected, described(path, precision), strict=True):
        for key in wanted.keys() | found.keys():
            if wanted.get(key) != found.get(key):
                raise VerificationError(
                    f"{path}: {what} {key} is {found.get(key, 'missing')}, expected {wanted.get(key, 'none')}: "
                    "export the bundle again"
                )


def described(path: Path, precision: str) -> tuple[Contract, Contract]:
    """The inputs and outputs that a graph has."""
    if precision == "bf16":  # ONNX Runtime's CPU provider opens no such graph
        return read_contract(path)
    session = open_session(path, threads=1)
    values = (session.get_inputs(), session.get_outputs())
    found = [{value.name: (value.type, list(value.shape)) for value in part} for part in values]
    return found[0], found[1]


def read_contract(path: Path) -> tuple[Contract, Contract]:
    """The same without a runtime. Raises EngineError where onnx-ir is missing."""
    try:
        import onnx_ir
    except ImportError:
        raise EngineError(f"reading {path} needs onnx-ir: pip install onnx-ir") from None
    kinds = {"FLOAT": FLOAT, "INT64": INT64, "BOOL": BOOL, "BFLOAT16": CACHES["bf16"]}
    graph = onnx_ir.load(path).graph
    found: list[Contract] = []
    for part in (graph.inputs, graph.outputs):
        one: Contract = {}
        for value in part:
            dims: list[str | int] = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
            one[str(value.name)] = (kinds[value.dtype.name] if value.dtype else "unknown", dims)
        found.append(one)
    return found[0], found[1]


def contract(bundle: Bundle, name: str, precision: str = "fp32") -> tuple[Contract, Contract]:
    """The inputs and outputs of a graph kind, as type and shape."""
    model = bundle.model
    if name in ("decoder", "encoder"):
        tokens: Contract = {"tokens": (INT64, ["images", "rows", "columns"])}
        pixels: Contract = {"images": (UINT8, ["images", "height", "width", 3])}
        return (tokens, pixels) if name == "decoder" else (pixels, tokens)
    cache: tuple[str, list[str | int]] = (CACHES[precision], ["rows", model.kv_heads, "slots", model.head_size])
    outputs = "queries" if model.queries else "width"
    inputs: Contract = {
        "tokens": (INT64, ["rows", "width"]),
        "positions": (INT64, ["rows", "width"]),
        "write_index": (INT64, ["rows"]),
        "mask": (BOOL, ["rows", 1, "width", "slots"]),
        "uniforms": (FLOAT, ["images", outputs]),
        "guidance": (FLOAT, [1]),
        "temperature": (FLOAT, [1]),
        "top_k": (INT64, [1]),
        "top_p": (FLOAT, [1]),
    }
    if model.queries:
        inputs["query_positions"] = (INT64, ["rows", outputs])
    given: Contract = {"next_tokens": (INT64, ["images", outputs])}
    if name == "step-logits":
        given["logits"] = (FLOAT, ["images", outputs, model.vocabulary])
    for cache_name in cache_names(model.caches):
        inputs[cache_name] = given[f"new_{cache_name}"] = cache
    return inputs, given


def check_engine(bundle: Bundle, target: str, precision: str) -> None:
    """Generate two images alone and together; raise VerificationError where the tokens differ."""
    request: dict[str, Any] = {"schedule": bundle.default_schedule, "guidance": 2.0}
    classes = [0, bundle.model.class_condition.classes - 1]
    with Runner.open(bundle.root, target=target, precision=precision) as runner:
        together = runner.generate(classes, seeds=[0, 1], **request).tokens
        for index, label in enumerate(classes):
            alone = runner.generate([label], seeds=[index], **request).tokens
            if (alone[0] != together[index]).any():
                raise VerificationError(
                    f"{target} {precision}: class {label} gives other tokens alone than in a batch of two: "
                    "rebuild the engine, and report it where that does not help"
                )


def check_own_graph(bundle: Bundle) -> str:
    """Run the fp32 engine's own graph beside the one that it was made from; what was found.

    Raises VerificationError where keys or values of a step differ by more than rounding.
    """
    path = bundle.path(bundle.engine("onnxruntime", "fp32")["graph"])
    source = bundle.graph("step", "fp32")
    if path == source:
        return "runs the bundle's own graph"
    engines = [OnnxRuntimeEngine(bundle, "fp32", path=graph) for graph in (source, path)]
    errors = []
    try:
        for name in bundle.specifications:
            for done in lockstep(bundle, name, engines, [0], COMPARED_STEPS):
                errors.append(difference(bundle, engines, done[0][0]))
                if not errors[-1] <= ROUNDING:
                    raise VerificationError(
                        f"{path}: step {len(errors)} of {name} writes keys or values with an error "
                        f"of {errors[-1]:.1e} of their largest, allowed is {ROUNDING:.0e}: rebuild the engine"
                    )
    finally:
        for engine in engines:
            engine.close()
    return f"keys and values of {len(errors)} steps are those of {source.name} (error {max(errors):.0e} of the largest)"


def difference(bundle: Bundle, engines: Sequence[OnnxRuntimeEngine], step: PlannedStep) -> float:
    """The largest difference of what two engines wrote in a step, relative to the largest that the first wrote."""
    wanted, found = (written(bundle, engine, step) for engine in engines)
    errors = (np.abs(found[name] - array).max() / max(np.abs(array).max(), TINY) for name, array in wanted.items())
    return float(np.max(list(errors)))  # NaN where there is one
