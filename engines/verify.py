"""Checks a bundle without torch: structure, hashes, schedules, graph contracts, engines, and a short real run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arforge.runner.backends.kernels import find_kernels
from arforge.runner.backends.onnxruntime_engine import OnnxRuntimeEngine
from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import BuiltEngine, Bundle, open_bundle
from arforge.runner.command_line import command_line
from arforge.runner.conditions import sample_conditions, sample_subjects
from arforge.runner.errors import EngineError, VerificationError
from arforge.runner.optional import installed, needed
from arforge.runner.plan import PlannedStep
from arforge.runner.report import Report
from arforge.runner.runner import Runner
from arforge.runner.side_by_side import side_by_side, written
from arforge.runner.step_graph import CACHE_TYPES, Contract, Tensor, contract, difference
from arforge.runner.text.tokenizer import TextTokenizer

COMPARED_STEPS = 12  # of each stored schedule
DRAFTED, WINDOW = 4, 8  # images, and inputs of a call
TINY = float(np.finfo(np.float32).tiny)
ROUNDING = 1e-3  # of keys and values of float32 graphs, relative to the largest that a step writes


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
    check_text_tokenizer(bundle, report)
    for graph in bundle.graphs:
        check_contract(bundle, graph.name, graph.precision, bundle.path(graph.path))
        report(f"graph {graph.name} {graph.precision}: inputs and outputs as the format says")
    engines = [engine for engine in bundle.engines if target in (None, engine.target)]
    if target is not None and not engines:
        command = command_line("build", root, "--target", target)
        raise EngineError(f"{root} has no {target} engine: build it with `{command}`")
    for engine in engines:
        if engine.target == "onnxruntime":
            check_engine(bundle, engine.target, engine.precision)
            report(f"engine {engine.target} {engine.precision}: same tokens alone and in a batch")
            if window := drafted_window(bundle, engine):
                report(f"engine {engine.target} {engine.precision}: {check_drafts(bundle, engine, window)}")
            if engine.precision == "fp32":
                report(f"engine {engine.target} fp32: {check_own_graph(bundle)}")
        else:
            from arforge.engines.tensorrt_verify import verify_engine

            verify_engine(bundle, engine, report, required=target is not None)
    return bundle


def check_data(bundle: Bundle, report: Report) -> None:
    """Look where the graphs' weights lie, before a runtime does; engines' own graphs too."""
    try:
        with needed("looking at it", "build", EngineError):
            from arforge.engines.graph_data import check_graphs
    except EngineError as error:
        report(f"graphs' data: not looked at ({error})")
        return
    paths = [path for path in bundle.files if path.endswith(".onnx")]
    check_graphs(bundle, paths)
    report(f"graphs' data: {len(paths)} graphs read inside their files, tensors apart")


def check_text_tokenizer(bundle: Bundle, report: Report) -> None:
    """Raise BundleError unless the tokenizer of a bundle that has one gives ids."""
    if bundle.text_tokenizer is None:
        return
    if not installed("tokenizers"):
        report("text tokenizer: not looked at (no tokenizers; pip install 'arforge[text]')")
        return
    ids = TextTokenizer.open(bundle.path(bundle.text_tokenizer)).ids("a picture")
    report(f"text tokenizer: reads 'a picture' as {len(ids)} ids")


def check_contract(bundle: Bundle, name: str, precision: str, path: Path) -> None:
    """Raise VerificationError unless the graph has exactly the inputs and outputs of its kind."""
    expected, there = contract(bundle.model, name, CACHE_TYPES[precision]), read_contract(path, precision)
    for what, wanted, found in (("input", expected.inputs, there.inputs), ("output", expected.outputs, there.outputs)):
        problem = difference(wanted, found)
        if problem:
            raise VerificationError(f"{path}: {what} {problem}: export the bundle again")


def read_contract(path: Path, precision: str) -> Contract:
    """The inputs and outputs that a graph has. Raises EngineError if reading it needs onnx-ir, which is missing."""
    if precision != "bf16":
        return contract_of(open_session(path, threads=1))
    with needed(f"reading {path}", "build", EngineError):  # ONNX Runtime's CPU provider opens no such graph
        import onnx_ir

    def tensor(value: onnx_ir.Value) -> Tensor:
        dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ())
        return Tensor(str(value.name), str(value.dtype.numpy()) if value.dtype else "unknown", dims)

    graph = onnx_ir.load(path).graph
    return Contract(tuple(map(tensor, graph.inputs)), tuple(map(tensor, graph.outputs)))


def check_engine(bundle: Bundle, target: str, precision: str) -> None:
    """Generate two images alone and together; raise VerificationError if the tokens differ."""
    request: dict[str, Any] = {"schedule": bundle.default_schedule, "guidance": 2.0}
    samples = sample_subjects(bundle.model, 2)
    with Runner.open(bundle.root, target=target, precision=precision) as runner:
        together = runner.generate(**samples.take([0, 1]), seeds=[0, 1], **request).tokens
        for index in range(2):
            alone = runner.generate(**samples.take([index]), seeds=[index], **request).tokens
            if (alone[0] != together[index]).any():
                raise VerificationError(
                    f"{target} {precision}: {samples.name(index)} gives other tokens alone than in a batch of two: "
                    "rebuild the engine, and report it where that does not help"
                )


def drafted_window(bundle: Bundle, engine: BuiltEngine) -> int:
    """Inputs of a call to compare with next-token's: what the engine's widths take; 0 where it cannot run ahead."""
    widths = bundle.identity(engine)["widths"] or [WINDOW]
    window = min(WINDOW, bundle.model.cells, max(widths))
    return window if bundle.model.order == "raster" and window > 1 else 0


def check_drafts(bundle: Bundle, engine: BuiltEngine, window: int) -> str:
    """How many images that run ahead on drafts are next-token's own.

    Raises VerificationError if one is not, though the engine was built to round alike at that width.
    """
    given = sample_subjects(bundle.model, DRAFTED).take(range(DRAFTED))
    with Runner.open(bundle.root, target=engine.target, precision=engine.precision) as runner:
        wanted, found = (runner.generate(**given, schedule=one).tokens for one in ("ntp", f"jacobi:{window}"))
    same = int((wanted == found).all(axis=1).sum())
    identity = bundle.identity(engine)
    exact = "exact_width" in identity or ("own_graph" in identity and find_kernels() is not None)
    if same < DRAFTED and exact:
        raise VerificationError(
            f"{engine}: jacobi:{window} gives other tokens than ntp for {DRAFTED - same} of {DRAFTED} images: rebuild "
            "the engine, and report it where that does not help"
        )
    return f"jacobi:{window} gives ntp's tokens for {same} of {DRAFTED} images"


def check_own_graph(bundle: Bundle) -> str:
    """Run the fp32 engine's own graph beside the one that it was made from; what was found.

    Raises VerificationError if keys or values of a step differ by more than rounding.
    """
    path = bundle.path(bundle.engine("onnxruntime", "fp32")["graph"])
    source = bundle.graph(bundle.sampler.graph, "fp32")
    if path == source:
        return "runs the bundle's own graph"
    engines = [OnnxRuntimeEngine(bundle, "fp32", path=graph) for graph in (source, path)]
    errors = []
    try:
        for name in bundle.specifications:
            for done in side_by_side(bundle, name, engines, sample_conditions(bundle, 1), COMPARED_STEPS):
                errors.append(written_error(bundle, engines, done[0][0]))
                if not errors[-1] <= ROUNDING:
                    raise VerificationError(
                        f"{path}: step {len(errors)} of {name} writes keys or values with an error "
                        f"of {errors[-1]:.1e} of their largest, allowed is {ROUNDING:.0e}: rebuild the engine"
                    )
    finally:
        for engine in engines:
            engine.close()
    return f"keys and values of {len(errors)} steps are those of {source.name} (error {max(errors):.0e} of the largest)"


def written_error(bundle: Bundle, engines: Sequence[OnnxRuntimeEngine], step: PlannedStep) -> float:
    """The largest difference of what two engines wrote in a step, relative to the largest that the first wrote."""
    wanted, found = (written(bundle, engine, step) for engine in engines)
    errors = (np.abs(found[name] - array).max() / max(np.abs(array).max(), TINY) for name, array in wanted.items())
    return float(np.max(list(errors)))  # NaN where there is one
