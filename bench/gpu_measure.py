"""What is measured of an engine on a GPU: tokens beside the CPU's, time a step, launches and waits an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gpu_counts import Counts

from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.conditions import sample_conditions, sample_subjects
from arforge.runner.errors import EngineError
from arforge.runner.profiling.profile import Settings, TimedEngine, Traffic, profile_schedule, summary
from arforge.runner.profiling.sensors import Sensors
from arforge.runner.runner import Runner, open_codec, open_engine
from arforge.runner.side_by_side import GUIDANCE, side_by_side

TENSORRT = ("tensorrt", "tensorrt-rtx")
COMPARED_STEPS = 64
SAME = 0.98  # of a float32 engine's tokens, step by step; sums in another order may turn a few
KEPT = (
    *("ms_per_step", "ms_per_step_by_width", "ms_per_image", "images_per_second", "bytes_per_second"),
    *("bandwidth_share", "runner_ms_per_step", "watts", "joules_per_image"),
)
Note = Callable[[dict[str, Any]], None]
"""Takes figures as they come."""


def engine_of(
    runtime: str, bundle: Bundle, precision: str, schedules: Sequence[str], batches: Sequence[int], **wishes: Any
) -> Engine:
    """The engine of one runtime, built first where it needs that. Raises an ArforgeError if it cannot be had."""
    from gpu_engines import ProviderEngine, TorchEngine

    if runtime in TENSORRT:
        from arforge.engines.tensorrt import BuildJob, build

        build(BuildJob(bundle.root, runtime, precision, schedules=schedules, images=batches, **wishes), print)
        return open_engine(open_bundle(bundle.root), runtime, precision)
    engines: dict[str, Callable[[], Engine]] = {
        "onnxruntime-cuda": lambda: ProviderEngine(bundle, precision, "CUDA"),
        "onnxruntime-cuda-plain": lambda: ProviderEngine(bundle, precision, "CUDA", graphs=False),
        "onnxruntime-cpu": lambda: ProviderEngine(bundle, precision, "CPU"),
        "torch-compile": lambda: TorchEngine(bundle, precision, "cuda", compiled=True),
        "torch-eager": lambda: TorchEngine(bundle, precision, "cuda", compiled=False),
        "torch-cpu": lambda: TorchEngine(bundle, precision, "cpu", compiled=False),
    }
    if runtime not in engines:
        raise EngineError(f"no runtime {runtime!r}: use {', '.join([*TENSORRT, *engines])}")
    return engines[runtime]()


def same_step_tokens(
    bundle: Bundle, reference: Engine, engine: Engine, schedule: str, steps: int = COMPARED_STEPS
) -> float:
    """Share of tokens, most likely ones, that both find the same, each step given the reference's so far."""
    same = cells = 0
    for done in side_by_side(bundle, schedule, [reference, engine], sample_conditions(bundle, 1), steps):
        wanted, found = (buffers.next_tokens[:, step.target_rows] for step, buffers in done)
        same, cells = same + int((wanted == found).sum()), cells + wanted.size
    return same / cells


def tokens(root: Path, runtime: str, precision: str, schedules: Sequence[str], note: Note, **wishes: Any) -> None:
    """Tokens of one image beside the CPU's float32 ones: step by step on the CPU's so far, and a whole one.

    Of lower precisions also beside the same rounded graph on the CPU, since rounding alone changes tokens.
    Launches, waits, bytes and seconds are those of the same image once more, whose CUDA graphs are there.
    """
    bundle = open_bundle(root)
    start = time.perf_counter()
    engine = engine_of(runtime, bundle, precision, schedules, [1], **wishes)
    figures: dict[str, Any] = {"seconds_to_build_and_load": time.perf_counter() - start, **facts_of(engine, root)}
    figures["schedules"] = {}
    counts, reference = Counts(engine), open_engine(bundle, "onnxruntime", "fp32")
    own = own_graph(open_bundle(root), runtime, precision)
    request = {**sample_subjects(bundle.model, 1).take([0]), "guidance": GUIDANCE, "seeds": [0]}
    with Runner(bundle, reference) as expected, Runner(open_bundle(root), engine) as runner:
        for name in schedules:
            found: dict[str, Any] = {}
            if not name.startswith("jacobi"):
                found["steps"] = same_step_tokens(bundle, reference, engine, name)
            if own is not None:
                found["steps_of_its_own_graph"] = same_step_tokens(bundle, own, engine, name)
            wanted = expected.generate(**request, schedule=name)
            made = runner.generate(**request, schedule=name)
            found["image"] = float((made.tokens == wanted.tokens).mean())
            counts.taken()
            again = runner.generate(**request, schedule=name)
            found["image_again"] = float((again.tokens == made.tokens).mean())  # the same graphs, the same memory
            found |= {"calls": int(again.steps), "calls_of_the_cpu": int(wanted.steps), "seconds": again.seconds}
            figures["schedules"][name] = found | counts.taken()
            note(figures)
    if own is not None:
        own.close()
    if precision == "fp32" and any(one.get("steps", 1) < SAME for one in figures["schedules"].values()):
        raise EngineError(f"float32 tokens differ from the CPU's: {figures['schedules']}")


def own_graph(bundle: Bundle, runtime: str, precision: str) -> Engine | None:
    """A TensorRT engine's graph on the CPU, where its weights are rounded; None where that runs no such graph."""
    from arforge.engines.tensorrt_run import ON_CPU, reference_engine

    plain = precision == "fp32" or precision in ON_CPU
    return reference_engine(bundle, precision, runtime) if runtime in TENSORRT and not plain else None


def facts_of(engine: Engine, root: Path) -> dict[str, Any]:
    """Of an engine that `arforge build` made: its size, and what it is like inside."""
    identity = getattr(engine, "identity", None)
    if identity is None:
        return {}
    return {
        "library": identity["library"],
        "engine_bytes": (root / identity["engine"]).stat().st_size,
        "attention": identity["attention"],
        "caches": identity["caches"],
        "cache_slots": identity["slots"],
        "profiles": len(identity["profiles"]),
        "copied_cache_bytes": identity["copied_cache_bytes"],
    }


def speed(
    root: Path, runtime: str, precision: str, schedules: Sequence[str], batch: int, note: Note, **wishes: Any
) -> None:
    """Time a step, share of the memory's bandwidth, power, and how many of the first tokens are the CPU's."""
    bundle = open_bundle(root)
    start = time.perf_counter()
    measured = engine_of(runtime, bundle, precision, schedules, [batch], **wishes)
    engine, bundle = TimedEngine(measured), open_bundle(root)
    figures: dict[str, Any] = {"device": engine.device, "seconds_to_build_and_load": time.perf_counter() - start}
    figures |= facts_of(measured, root)
    target = runtime if runtime in TENSORRT else None
    traffic = Traffic.of(bundle, precision, engine.cache_type, target)
    with Runner(bundle, engine, open_codec(bundle, measured)) as runner, closing(Sensors.found()) as sensors:
        bandwidth = engine.bandwidth()
        figures |= {"bytes_per_second_of_a_copy": bandwidth, "schedules": []}
        for name in schedules:
            profile = profile_schedule(runner, engine, name, Settings(images=batch, guidance=GUIDANCE), sensors)
            row = summary(profile, traffic, bandwidth)
            least = (row["weight_bytes_per_step"] + row["cache_bytes_per_step"]) / bandwidth
            kept = {"schedule": name, "steps": row["steps"], "batch": batch, **{part: row[part] for part in KEPT}}
            figures["schedules"].append({**kept, "ms_per_step_of_the_memory_limit": 1000 * least})
            note(figures)
        reference = engine_of("onnxruntime-cpu", bundle, "fp32", schedules, [1])
        figures["same_tokens"] = same_step_tokens(bundle, reference, measured, schedules[0], 8)
        note(figures)


def own_pace(root: Path, runtime: str, precision: str, note: Note) -> None:
    """Jacobi's calls and time beside next-token decoding's, with several calls a launch and by the host."""
    engine = engine_of(runtime, open_bundle(root), precision, ["ntp", "jacobi:16"], [1])
    counts, figures = Counts(engine), dict[str, Any]()
    request = {**sample_subjects(open_bundle(root).model, 1).take([0]), "guidance": GUIDANCE, "seeds": [0]}
    with Runner(open_bundle(root), engine) as runner:
        for by in ("device", "host"):
            if by == "host":
                engine.loop = engine.table_loop = lambda *_: None  # type: ignore[method-assign, assignment]
            for name in ("ntp", "jacobi:16"):
                runner.generate(**request, schedule=name)  # captures
                counts.taken()
                result = runner.generate(**request, schedule=name)
                took = {"calls": int(result.steps), "seconds": result.seconds}
                figures[f"{name}, calls by the {by}"] = took | counts.taken()
                note(figures)
