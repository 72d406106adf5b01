"""The command lines that build the same engines by `trtexec`, or `tensorrt_rtx`, on a device without Python.

Where graphs are kept, a script beside them runs the commands and enters the engines in the bundle (`build_script.py`).
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from arforge.engines.build_script import write_script
from arforge.engines.low_precision import has_graphs
from arforge.engines.profiles import Shapes
from arforge.engines.tensorrt import (
    GRAPH,
    BuildJob,
    Prepared,
    check_precision,
    decoder_shapes,
    planned_between,
    prepare,
)
from arforge.engines.tensorrt_graph import decoder_graph
from arforge.engines.tensorrt_versions import abilities
from arforge.runner.backends.tensorrt_library import RTX
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.bundle.writer import write_hashed
from arforge.runner.errors import EngineError
from arforge.runner.step_graph import PROMPT_GRAPHS

PROGRAMS = {"tensorrt": "trtexec", RTX: "tensorrt_rtx"}


def dry_run(job: BuildJob, folder: Path | None = None) -> list[str]:
    """The commands that build the engine; the bundle stays as it is.

    `folder`: a new one for the graphs that the commands read, in which they are then to be run; None: the graphs are
    made and thrown away. Needs neither the library nor a GPU. Raises EngineError or ScheduleError for wishes that do
    not fit the bundle, and EngineError where the folder is there already or cannot be written.
    """
    check_precision(job)
    if job.target != RTX and job.compute_capabilities:
        raise EngineError(f"{job.target} builds for the GPU that it runs on: leave --compute-capability out")
    if job.attention == "view":
        raise EngineError(
            "--attention view is for engines that are looked into while they are built, which these commands do not: "
            "build it without --dry-run, or use --attention auto"
        )
    bundle = open_bundle(job.bundle)
    if folder is not None and os.path.lexists(folder):
        raise EngineError(f"{folder} is there already: name a new folder for the graphs")
    try:
        with TemporaryDirectory(dir=folder and folder.absolute().parent, prefix=".arforge-") as made:
            scratch = scratch_copy(bundle, job.precision, Path(made) / "scratch")
            ready = prepare(job, scratch)
            graph = ready.graph.relative_to(scratch.root)
            name = f"{graph.stem.removeprefix(f'{GRAPH}-')}-{job.precision}"
            commands = [command(job, graph, name, ready.shapes, exact=ready.exact)]
            read = [*ready.files, ready.graph, *outside(ready.graph)]
            for path, shapes in write_between(ready):
                plain = replace(job, strip_weights=False)  # it has none
                commands.append(command(plain, path.relative_to(scratch.root), path.stem, shapes))
                read.append(path)
            if bundle.image_tokenizer is not None:
                decoder, _ = decoder_graph(scratch, older=ready.caches.read_only)
                commands.append(
                    command(job, decoder.relative_to(scratch.root), "decoder-fp32", decoder_shapes(job, bundle))
                )
                read += [decoder, *outside(decoder)]
            if folder is not None:
                kept = Path(made) / "kept"
                for path in dict.fromkeys(read):
                    copy(path, kept / path.relative_to(scratch.root))
                write_script(kept, bundle, ready, commands, planned_between(ready))
                kept.rename(folder)
    except OSError as error:
        where = folder or error.filename or "a scratch folder"
        raise EngineError(f"cannot write {where}: {error.strerror or error}") from error
    return commands


def write_between(ready: Prepared) -> list[tuple[Path, list[Shapes]]]:
    """The graphs between two calls, beside the step's, and the shapes that each is built for."""
    bundle = ready.bundle
    plans = [(f"{one.kind}-tensorrt", one.plan) for one in planned_between(ready) if one.plan is not None]
    folder = ready.graph.parent
    return [(write_hashed(folder, name, ".onnx", plan.content(bundle)), plan.shapes(bundle)) for name, plan in plans]


def scratch_copy(bundle: Bundle, precision: str, root: Path) -> Bundle:
    """The part of a bundle that a build reads, elsewhere, so that it can be written to.

    No links: who reads graphs refuses weights that have several names.
    """
    given = precision if has_graphs(bundle, precision) else "fp32"
    wanted = [one for one in bundle.graphs if one.name == "decoder" or one.precision == given]
    graphs = [one for one in wanted if one.name not in PROMPT_GRAPHS]
    paths = [path for graph in graphs for path in (graph.path, graph.weights)]
    for path in {*paths, *(schedule.path for schedule in bundle.schedules)}:
        copy(bundle.path(path), root / path)
    return replace(bundle, root=root)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def outside(graph: Path) -> set[Path]:
    """The files that a graph keeps its tensors in."""
    values = (value.const_value for value in ir.load(graph).graph.initializers.values())
    return {graph.parent / str(value.location) for value in values if isinstance(value, ir.ExternalTensor)}


def command(job: BuildJob, graph: Path, name: str, given: Sequence[Shapes], *, exact: bool = False) -> str:
    """One command line. `given`: a profile each, in which min, opt and max are the same; `exact`: as `Prepared`'s."""
    words = [PROGRAMS[job.target], f"--onnx={graph.as_posix()}", f"--saveEngine={name}.engine", "--skipInference"]
    if job.target == RTX:
        if job.compute_capabilities:
            numbers = ",".join(one.replace(".", "") for one in job.compute_capabilities)
            words.append(f"--computeCapabilities={numbers}")
    else:
        words.append(f"--timingCacheFile={name}.cache")
    if abilities(job.target, job.version).typed_on_request:
        words.append("--stronglyTyped")
    if exact or job.precision == "fp32":
        words.append("--noTF32")
    if job.strip_weights:
        words += ["--stripWeights", "--refit"]
    for index, shapes in enumerate(given):
        text = ",".join(f"{tensor}:{'x'.join(map(str, shape))}" for tensor, shape in shapes.items())
        words += [f"--profile={index}", *(f"--{bound}Shapes={text}" for bound in ("min", "opt", "max"))]
    return shlex.join(words)
