"""Builds TensorRT and TensorRT-RTX engines of a bundle: one engine, a profile for each step shape, caches in place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from arforge.engines.device_memory import told_memory
from arforge.engines.low_precision import add_graphs, entries, has_graphs
from arforge.engines.precision import TYPES
from arforge.engines.profiles import Profiles, Shapes, plan_profiles, shapes
from arforge.engines.tensorrt_between import Between, build_between, plan_between
from arforge.engines.tensorrt_cache_layers import check_views, copied_bytes, readers
from arforge.engines.tensorrt_graph import Lowered, decoder_graph, lower_for_tensorrt, source_precision, write_model
from arforge.engines.tensorrt_layers import check_layers, dump_layers, expected, parse_layers
from arforge.engines.tensorrt_library import load_builder, quiet
from arforge.engines.tensorrt_versions import CacheChoice, abilities, choose_caches
from arforge.engines.tensorrt_view import profiles_for_views
from arforge.engines.tensorrt_weights import check_weights, weights_of
from arforge.runner.backends.cuda import gpu_compute_capability
from arforge.runner.backends.tensorrt_identity import ROWS_FIRST, SLOTS_FIRST
from arforge.runner.backends.tensorrt_library import RTX, Library
from arforge.runner.bundle import BuiltEngine, Bundle
from arforge.runner.bundle.writer import add_engine, changing, facts_of, write_hashed
from arforge.runner.errors import EngineError
from arforge.runner.report import Report

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
TYPED = {
    "fp32": "float",
    "fp16": "half",
    "bf16": "bfloat16",
    "int8": "half",
    "int4": "half",
}  # of caches and activations
BF16_SINCE = "8.0"
GRAPH = "step-tensorrt"


@dataclass(frozen=True)
class BuildJob:
    """What to build. Empty sequences take the defaults: the stored schedules, widths by rule, one image.

    `filters`: whether the engine can filter by top-k and top-p (None: if the bundle's defaults do). They would run
    in every step, wanted or not, since a branch keeps TensorRT from capturing CUDA graphs.
    """

    bundle: Path
    target: str
    precision: str
    compute_capabilities: Sequence[str] = ()
    schedules: Sequence[str] = ()
    widths: Sequence[int] = ()
    images: Sequence[int] = (1,)
    attention: str = "auto"
    filters: bool | None = None
    strip_weights: bool = False
    prefill_widths: Sequence[int] = ()  # of passes of prompts, where the model takes them; by rule
    loop: bool = True  # whether it gets what makes several calls a launch, where a schedule can have that
    caches: str = "auto"  # how they are updated, one of tensorrt_versions.LOWERINGS
    version: str | None = None  # of the library that is to build it elsewhere, of a dry run
    known: bool = True  # whether it takes requests with known cells, where a schedule can start from them


@dataclass(frozen=True)
class Built:
    identity: dict[str, Any]
    seconds: float  # of the builder
    engine_bytes: int


@dataclass(frozen=True)
class Result:
    """What a builder gives."""

    engine: bytes
    listing: str  # of the engine's layers
    cache: bytes  # timings
    memory: dict[str, int] | None  # bytes on the device that the builder named


@dataclass(frozen=True)
class Prepared:
    """All that is settled before a builder runs; paths in the bundle."""

    job: BuildJob
    bundle: Bundle
    profiles: Profiles
    filters: bool
    caches: CacheChoice
    lowered: Lowered
    graph: Path  # that TensorRT is given
    files: tuple[Path, ...]  # new in the bundle, this graph among them

    @property
    def views(self) -> bool:
        """Whether attention reads the caches by views."""
        return self.lowered.attention.lowering == "view"

    @property
    def exact(self) -> bool:
        """Whether the step's float32 products keep all digits: those of opset 20 sum up probabilities."""
        return self.job.precision == "fp32" or self.caches.read_only

    @property
    def shapes(self) -> list[Shapes]:
        """For each profile, the shapes of the inputs that have free dimensions."""
        free = {
            value.name
            for value in self.lowered.model.graph.inputs
            if value.shape is None or not value.shape.is_static()
        }
        slots, views = self.profiles.slots, self.views
        given = [shapes(self.bundle, profile, slots, views=views) for profile in self.profiles.profiles]
        return [{name: shape for name, shape in one.items() if name in free} for one in given]


def prepare(job: BuildJob, bundle: Bundle) -> Prepared:
    """Settle shapes and write the lowered graph, and where they are missing those of the precision, into the bundle.

    They are not entered in its manifest. Raises EngineError or ScheduleError for wishes that do not fit the bundle, or
    the library's version.
    """
    caches = choose_caches(job.target, job.version, job.caches, job.attention)
    profiles = plan_profiles(bundle, job.schedules, job.images, job.widths, job.prefill_widths, known=job.known)
    if job.attention == "view":
        schedules = [bundle.schedule(name) for name in job.schedules or bundle.specifications]
        profiles = profiles_for_views(job.target, profiles, schedules)
    filters = bundle.sampler.top_k > 0 or bundle.sampler.top_p < 1 if job.filters is None else job.filters
    new: list[Path] = []
    if job.precision in TYPES and not has_graphs(bundle, job.precision):
        new = add_graphs(bundle, job.precision)
        bundle = replace(bundle, graphs=(*bundle.graphs, *entries(bundle, job.precision)))
    batches = sorted(set(job.images))
    one = batches[0] if len(batches) == 1 else None
    lowered = lower_for_tensorrt(
        bundle,
        job.precision,
        profiles.slots,
        one,
        filters,
        job.attention,
        own_mask=profiles.own_mask,
        target=job.target,
        read_only=caches.read_only,
    )
    graph = write_model(
        lowered.model, bundle.graph(bundle.sampler.graph, source_precision(job.precision)).parent, GRAPH
    )
    return Prepared(job, bundle, profiles, filters, caches, lowered, graph[0], (*new, *graph))


def build(job: BuildJob, report: Report = lambda line: None) -> Built:
    """Build the engine and enter it in the bundle, which is as before or whole at every moment.

    Raises EngineError if the library, the precision, the device or a shape does not fit, or the builder fails.
    """
    check_precision(job)
    library = load_builder(job.target)
    devices = check_devices(job, library)
    with changing(job.bundle) as bundle:
        ready = prepare(replace(job, version=library.version), bundle)
        chosen, caches = ready.lowered.attention, ready.caches
        report(f"caches {caches.lowering}: {caches.reason}")
        report(f"attention {chosen.lowering}: {chosen.reason}; {len(ready.profiles.profiles)} profiles")
        device = device_name(devices)
        kind = BuiltEngine(job.target, job.precision, device, f"engines/{job.target}-{job.precision}-{device}")
        folder = bundle.path(kind.path)
        start = time.perf_counter()
        timings = next(folder.glob("timing-*.cache"), None)
        step = run_builder(library, ready.graph, ready.shapes, job, devices, timings, exact=ready.exact)
        seconds = time.perf_counter() - start
        layers = parse_layers(step.listing)
        wanted = expected(ready.lowered.model, bundle.model.caches)
        count, own = len(ready.profiles.profiles), wanted.caches
        problems = check_views(layers, readers(ready.lowered.model, bundle.model.caches), count)
        if layers:
            problems += check_layers(layers, wanted, count)
            problems += check_weights(layers, len(step.engine), weights_of(ready.lowered.model), count)
        if problems:
            raise EngineError(f"{library.name} built another engine than was asked: {problems[0]}")
        decoder, reason = build_decoder(library, ready, devices, report)
        plain = replace(job, strip_weights=False)  # what stands between two calls has none
        between = [
            build_between(bundle, one, lambda path, given: run_builder(library, path, given, plain, devices, None))
            for one in planned_between(ready)
        ]
        files = {
            "engine": write_hashed(folder, "step", ".engine", step.engine),
            "decoder": write_hashed(folder, "decoder", ".engine", decoder) if decoder else None,
            "layers": write_hashed(folder, "layers", ".json", dump_layers(layers)) if layers else None,
            "timing_cache": write_hashed(folder, "timing", ".cache", step.cache),
            **{name: path for one in between for name, path in one.write(folder).items()},
        }
        identity = describe(ready, library, devices, files, reason, between)
        identity |= {"memory": step.memory} if step.memory else {}
        identity["copied_cache_bytes"] = copied_bytes(layers, own, count) if layers else None
        new = [*ready.files, *(path for path in files.values() if path)]
        add_engine(ready.bundle, kind, identity, new, unused_graphs(bundle, kind, ready.graph))
    return Built(identity, seconds, len(step.engine))


def check_precision(job: BuildJob) -> None:
    if job.precision not in PRECISIONS:
        raise EngineError(f"target {job.target} has no precision {job.precision!r}: use {', '.join(PRECISIONS)}")


def check_devices(job: BuildJob, library: Library) -> list[str]:
    """The compute capabilities to build for; none for those that TensorRT-RTX builds for by itself.

    Raises EngineError for one that the library cannot build for.
    """
    known, asked = library.compute_capabilities, list(dict.fromkeys(job.compute_capabilities))
    if job.target != RTX:
        present = gpu_compute_capability()
        if present is None:
            raise EngineError(f"{job.target} builds on the GPU that will run the engine, and there is none here")
        if asked not in ([], [present]):
            raise EngineError(f"{job.target} builds for the GPU here, {present}: leave --compute-capability out")
        return [present]
    for one in asked:
        if one not in known:
            raise EngineError(f"{library.name} does not build for compute capability {one}: use {', '.join(known)}")
        if job.precision == "bf16" and float(one) < float(BF16_SINCE):
            raise EngineError(f"compute capability {one} has no bf16: use fp16, or {BF16_SINCE} and later")
    if job.strip_weights and gpu_compute_capability() is None:
        raise EngineError(f"{library.target} strips weights on a machine with a GPU only, and there is none here")
    if job.strip_weights and len(asked) > 1:
        raise EngineError(f"{library.target} strips weights for one compute capability at a time: give one")
    return asked


def device_name(devices: Sequence[str]) -> str:
    return "+".join(f"sm{device.replace('.', '')}" for device in devices) or "rtx"


def run_builder(
    library: Library,
    graph: Path,
    given: Sequence[Shapes],
    job: BuildJob,
    devices: Sequence[str],
    cache: Path | None,
    *,
    exact: bool = False,
) -> Result:
    """Raises EngineError if the builder fails. `cache`: timings of an earlier build; `exact`: as `Prepared` has it."""
    what = f"{library.name} cannot build {graph.name}"
    with quiet(what, library), TemporaryDirectory() as scratch:
        from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path

        profiles = []
        for one in given:
            profile = Profile()
            for name, shape in one.items():
                profile.add(name, shape, shape, shape)
            profiles.append(profile)
        earlier = cache and Path(shutil.copy(cache, scratch))  # Polygraphy leaves a lock beside what it reads
        tf32 = job.precision != "fp32" and not exact
        config = make_config(library, profiles, job, devices, earlier, tf32)
        timings = Path(scratch) / "timing.cache"
        typed = abilities(library.target, library.version).typed_on_request
        network = network_from_onnx_path(str(graph), strongly_typed=typed)
        engine = bytes(engine_bytes_from_network(network, config, save_timing_cache=str(timings)))
        memory = told_memory(library.recorder.memory)
        return Result(engine, library.recorder.layers, timings.read_bytes(), memory)


def make_config(
    library: Library, profiles: list[Any], job: BuildJob, devices: Sequence[str], cache: Path | None, tf32: bool
) -> Callable[[Any, Any], Any]:
    from polygraphy.backend.trt import CreateConfig

    common: dict[str, Any] = {
        "profiles": profiles,
        "strip_plan": job.strip_weights,
        "refittable": job.strip_weights,
        "load_timing_cache": str(cache) if cache and cache.exists() else None,
        "profiling_verbosity": library.trt.ProfilingVerbosity.DETAILED,
    }
    if library.target != RTX:
        plain: Callable[[Any, Any], Any] = CreateConfig(tf32=tf32, **common)
        return plain
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    pairs = [tuple(int(part) for part in device.split(".")) for device in devices]
    config: Callable[[Any, Any], Any] = CreateConfigRTX(compute_capabilities=pairs or None, **common)

    def with_flags(builder: Any, network: Any) -> Any:
        made, flags = config(builder, network), library.trt.BuilderFlag
        (made.set_flag if tf32 else made.clear_flag)(flags.TF32)
        made.set_flag(flags.REQUIRE_USER_ALLOCATION)  # a CUDA graph cannot be captured around allocations
        return made

    return with_flags


def build_decoder(
    library: Library, ready: Prepared, devices: Sequence[str], report: Report
) -> tuple[bytes | None, str | None]:
    """The image decoder as an engine in float32, a profile for each batch; or why it stays on ONNX Runtime."""
    bundle = ready.bundle
    if bundle.image_tokenizer is None:
        return None, "the bundle has no image tokenizer"
    report("building the image decoder")
    graph, new = decoder_graph(bundle, older=ready.caches.read_only)
    try:
        given = decoder_shapes(ready.job, bundle)
        return run_builder(library, graph, given, ready.job, devices, None).engine, None
    except EngineError as error:
        return None, f"stays on ONNX Runtime: {error}"
    finally:
        for path in new:  # the engine has all that they hold
            path.unlink(missing_ok=True)


def planned_between(ready: Prepared) -> list[Between]:
    """What stands between two calls of the step, or why nothing does."""
    job = ready.job
    reason = None if job.loop else "as asked"
    if job.loop and ready.caches.read_only:
        reason = "the host puts the keys and values of each step into the caches"
    return plan_between(ready.bundle, job.schedules, job.images, ready.profiles, reason)


def decoder_shapes(job: BuildJob, bundle: Bundle) -> list[Shapes]:
    return [{"tokens": (count, *bundle.model.grid)} for count in sorted(set(job.images))]


def unused_graphs(bundle: Bundle, kind: BuiltEngine, graph: Path) -> list[str]:
    """The lowered graph, and its weights, of the engine of that kind, unless another engine has it too."""
    used: set[str | None] = {graph.relative_to(bundle.root).as_posix()}
    old: set[str | None] = set()
    for engine in bundle.engines:
        (old if engine.key == kind.key else used).add(bundle.identity(engine).get("lowered"))
    stems = {PurePosixPath(path).stem for path in old - used if path}
    return [name for name in bundle.files if PurePosixPath(name).stem in stems]


def describe(
    ready: Prepared,
    library: Library,
    devices: Sequence[str],
    files: dict[str, Path | None],
    reason: str | None,
    between: Sequence[Between],
) -> dict[str, Any]:
    """The identity of an engine: what it was made from, by what, for what, and how."""
    job, bundle = ready.job, ready.bundle
    source = bundle.stored_graph(bundle.sampler.graph, source_precision(job.precision))
    sources = {"graph": source.path, "weights": source.weights}
    hashes = {part: bundle.files.get(path) or facts_of(bundle.path(path)) for part, path in sources.items()}
    profiles = ready.profiles
    places = {part: path and path.relative_to(bundle.root).as_posix() for part, path in files.items()}

    return {
        "target": job.target,
        "precision": job.precision,
        "device": device_name(devices),
        "library": library.name,
        "compute_capabilities": list(devices),
        **sources,
        **{f"{part}_sha256": hashed.sha256 for part, hashed in hashes.items()},
        "lowered": ready.graph.relative_to(bundle.root).as_posix(),
        **places,
        "decoder_reason": reason,
        "types": TYPED[job.precision],
        "tf32": not ready.exact,
        "caches": asdict(ready.caches),
        "attention": asdict(ready.lowered.attention),
        "cache_order": SLOTS_FIRST if ready.views else ROWS_FIRST,
        "filters": ready.filters,
        "own_mask": profiles.own_mask,
        **{name: value for one in between for name, value in one.facts.items()},
        "strip_weights": job.strip_weights,
        "slots": profiles.slots,
        "widths": list(profiles.widths),
        "prefill_widths": list(profiles.prefill_widths),
        "profiles": [asdict(profile) for profile in profiles.profiles],
        "options": {
            "compute-capability": list(job.compute_capabilities),
            "schedule": list(job.schedules),
            "width": list(job.widths),
            "prefill-width": list(job.prefill_widths),
            "images": list(job.images),
            "attention": job.attention,
            "caches": job.caches,
            "loop": job.loop,
            **({} if job.known else {"known": False}),
        },
    }
