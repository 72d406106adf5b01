"""The command lines that build the same engines by `trtexec`, or `tensorrt_rtx`, on a device without Python."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from arforge.engines.profiles import Shapes
from arforge.engines.tensorrt import GRAPH, Job, check_precision, decoder_shapes, prepare
from arforge.runner.backends.tensorrt_library import RTX
from arforge.runner.bundle.writer import changing, write_revision
from arforge.runner.errors import EngineError

PROGRAMS = {"tensorrt": "trtexec", RTX: "tensorrt_rtx"}


def dry_run(job: Job) -> list[str]:
    """The commands, to be run in the bundle's directory; the graph that they read is made and entered.

    Needs neither the library nor a GPU. Raises EngineError or ScheduleError for wishes that do not fit the bundle.
    """
    check_precision(job)
    if job.target != RTX and job.compute_capabilities:
        raise EngineError(f"{job.target} builds for the GPU that it runs on: leave --compute-capability out")
    with changing(job.bundle) as bundle:
        ready = prepare(job, bundle)
        write_revision(ready.bundle, ready.files)
    graph = ready.graph.relative_to(bundle.root)
    commands = [command(job, graph, f"{graph.stem.removeprefix(f'{GRAPH}-')}-{job.precision}", ready.shapes)]
    if bundle.image_tokenizer is not None:
        decoder = bundle.graph("decoder", "fp32").relative_to(bundle.root)
        commands.append(command(job, decoder, "decoder-fp32", decoder_shapes(job, bundle)))
    return commands


def command(job: Job, graph: Path, name: str, given: Sequence[Shapes]) -> str:
    """One command line. `given`: a profile each, in which min, opt and max are the same."""
    words = [PROGRAMS[job.target], f"--onnx={graph.as_posix()}", f"--saveEngine={name}.engine", "--skipInference"]
    if job.target == RTX:
        if job.compute_capabilities:
            numbers = ",".join(one.replace(".", "") for one in job.compute_capabilities)
            words.append(f"--computeCapabilities={numbers}")
    else:
        words.append(f"--timingCacheFile={name}.cache")
    if job.precision == "fp32":
        words.append("--noTF32")
    if job.strip_weights:
        words += ["--stripWeights", "--refit"]
    for index, shapes in enumerate(given):
        text = ",".join(f"{tensor}:{'x'.join(map(str, shape))}" for tensor, shape in shapes.items())
        words += [f"--profile={index}", *(f"--{bound}Shapes={text}" for bound in ("min", "opt", "max"))]
    return shlex.join(words)
