"""Looks into a TensorRT engine without running it: identity, network, layers, types, and its graph on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from arforge.engines.compare import compare_precision
from arforge.engines.tensorrt_between import check_between
from arforge.engines.tensorrt_cache_layers import check_views, copied_bytes, readers
from arforge.engines.tensorrt_layers import (
    Layer,
    attention_kernels,
    check_layers,
    expected,
    is_int4_product,
    is_product,
    load_layers,
)
from arforge.engines.tensorrt_library import load_builder, quiet
from arforge.engines.tensorrt_versions import abilities
from arforge.engines.tensorrt_weights import check_weights, weights_of
from arforge.runner.backends.cuda import gpu_compute_capability
from arforge.runner.backends.tensorrt_identity import (
    between_of,
    build_command,
    check_identity,
    devices,
    has_views,
    lowered_of,
    reads_only,
)
from arforge.runner.backends.tensorrt_library import Library
from arforge.runner.bundle import BuiltEngine, Bundle
from arforge.runner.errors import EngineError, VerificationError
from arforge.runner.report import Report
from arforge.runner.step_graph import Contract, cache_names, view_name, written_name

TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64", "bool": "BOOL"}  # the library's
LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of tensors, by name."""
COMPARED_STEPS = 16
TOLERANCE = 3e-2  # of logits, relative to the largest


def verify_engine(bundle: Bundle, engine: BuiltEngine, report: Report, required: bool = True) -> None:
    """Check one engine of the manifest; raises EngineError or VerificationError for what is not as it should be.

    Where the library is missing and not `required`, only what needs none is looked at.
    """
    identity = bundle.identity(engine)
    name = f"engine {engine.target} {engine.precision} {engine.device}"
    library = None
    try:
        library = load_builder(engine.target)
    except EngineError as error:
        if required:
            raise
        report(f"{name}: its network was not parsed, since {error}")
    version = None if library is None else library.name
    capability = gpu_compute_capability() if library is not None else None
    check_identity(bundle, identity, version, capability)
    report(f"{name}: built by {identity['library']} for {devices(identity)}, from the bundle's present graph")
    model = ir.load(bundle.path(identity["lowered"]))
    if library is not None:
        for line in check_network(bundle, identity, model, library):
            report(f"{name}: {line}")
    for line in check_listing(bundle, identity, model):
        report(f"{name}: {line}")
    for kind, wanted in between_of(bundle, identity).items():
        report(f"{name}: {check_between_engine(bundle, identity, kind, wanted, library)}")
    if library is not None and capability is not None:
        report(f"{name}: {check_run(bundle, identity, library)}")
    if has_views(identity):
        report(f"{name}: {check_closed(bundle, identity)}")
    if engine.precision == "fp16":  # ONNX Runtime's CPU provider runs no bf16; int8 is compared by `calibrate`
        found = compare_precision(bundle, "fp16", bundle.default_schedule, COMPARED_STEPS)
        if not found.largest_error <= TOLERANCE:
            raise VerificationError(
                f"{name}: its graph's logits differ from fp32's by {found.largest_error:.1e} of the largest, "
                f"allowed is {TOLERANCE:.0e}: use bf16"
            )
        report(
            f"{name}: its graph on ONNX Runtime, {bundle.default_schedule}, {found.steps} steps: logits within "
            f"{found.largest_error:.1e}, most likely token as fp32's for {100 * found.same_tokens:.1f} % of cells"
        )


def check_run(bundle: Bundle, identity: Mapping[str, Any], library: Library) -> str:
    """On a machine with a GPU: the engine beside ONNX Runtime, on the first of its schedules."""
    from arforge.engines.tensorrt_run import compare_engine

    schedule = next(iter(identity["options"]["schedule"]), bundle.default_schedule)
    found = compare_engine(bundle, identity, library, schedule)
    return (
        f"beside ONNX Runtime, {schedule}, {found.steps} steps: keys and values within {found.largest_error:.1e}, "
        f"{100 * found.same_step_tokens:.1f} % of tokens the same, "
        f"{100 * found.same_image_tokens:.1f} % over whole images"
    )


def check_closed(bundle: Bundle, identity: Mapping[str, Any]) -> str:
    """With an engine that reads its caches by views: its graph with what they stand for, beside the plain one."""
    from arforge.engines.tensorrt_closed import TOLERANCE as CLOSED
    from arforge.engines.tensorrt_closed import compare_closed

    if identity["precision"] not in CLOSED:
        return f"views: ONNX Runtime's CPU provider runs no {identity['precision']}, so the graph was not run"
    found = compare_closed(bundle, identity)
    return (
        f"views: its graph on ONNX Runtime with updated caches in their place, {found.steps} steps: keys and values "
        f"within {found.largest_error:.1e} of the plain graph's, {100 * found.same_tokens:.1f} % of tokens the same"
    )


def parsed(bundle: Bundle, graph: str, library: Library) -> tuple[dict[str, Kinds], Counter[str]]:
    """What the library reads a graph as: its inputs and outputs, and how many layers there are of each kind."""
    with quiet(f"{library.name} cannot read {graph}", library):
        from polygraphy.backend.trt import network_from_onnx_path

        typed = abilities(library.target, library.version).typed_on_request
        _, network, _ = network_from_onnx_path(str(bundle.path(graph)), strongly_typed=typed)
        kinds = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
        tensors = {
            what: {t.name: (t.dtype.name, tuple(t.shape)) for t in (get(index) for index in range(count))}
            for what, get, count in (
                ("input", network.get_input, network.num_inputs),
                ("output", network.get_output, network.num_outputs),
            )
        }
    return tensors, kinds


def check_network(bundle: Bundle, identity: Mapping[str, Any], model: ir.Model, library: Library) -> list[str]:
    """Parse the graph as the builder did: inputs and outputs, caches and attention as recorded."""
    tensors, kinds = parsed(bundle, identity["lowered"], library)

    def require(fine: bool, problem: str) -> None:
        if not fine:
            again = build_command(bundle.root, identity)
            raise VerificationError(f"{identity['lowered']}: {problem}. Rebuild the engine with `{again}`")

    wanted_graph = lowered_of(bundle, identity)
    caches, read_only = cache_names(bundle.model.caches), reads_only(identity)
    for name in caches:
        kind, wanted = TYPES[wanted_graph[name].dtype], fixed_sizes(wanted_graph, name, identity["slots"])
        given, result = tensors["input"].get(name), tensors["output"].get(written_name(name))
        wanted_result = None if read_only else given
        require(given is not None and result == wanted_result, f"cache {name} goes in as {given} and out as {result}")
        assert given is not None
        require(given[0] == kind, f"cache {name} is {given[0]}, expected {kind}")
        require(has_sizes(given[1], wanted), f"cache {name} has the shape {given[1]}, expected {wanted}")
        if has_views(identity):
            read = view_name(name)
            view, wanted = tensors["input"].get(read), fixed_sizes(wanted_graph, read, identity["slots"])
            fits = view is not None and view[0] == kind and has_sizes(view[1], wanted)
            require(fits, f"input {read} is {view}, expected {kind} {wanted}")
    wanted_kinds = {
        what: {tensor.name: TYPES[tensor.dtype] for tensor in part if "cache" not in tensor.name}
        for what, part in (("input", wanted_graph.inputs), ("output", wanted_graph.outputs))
    }
    for what, kinds_there in wanted_kinds.items():
        found = {name: dtype for name, (dtype, _) in tensors[what].items() if "cache" not in name}
        require(found == kinds_there, f"its {what}s are {found}, expected {kinds_there}")
    updated = 0 if read_only else len(caches)
    require(
        kinds["KV_CACHE_UPDATE"] == updated,
        f"{kinds['KV_CACHE_UPDATE']} of {len(caches)} caches are updated in place, expected {updated}",
    )
    fused = sum(node.op_type == "Attention" for node in model.graph)
    require(kinds["ATTENTION_INPUT"] == fused, f"{kinds['ATTENTION_INPUT']} of {fused} attentions are fused")
    lowering = identity["attention"]["lowering"]
    require((fused > 0) == (lowering == "fused"), f"attention is not {lowering}, as its identity says")
    raised = casts_to_float(model)
    allowed = casts_of_opset_20(bundle, identity, model) if read_only else expected_casts(identity, model)
    require(raised == allowed, f"{raised} results are cast to float32, expected {allowed}")
    why = identity["attention"]["reason"]
    kept = "only read" if read_only else "updated in place"
    line = f"{len(caches)} caches {kept}, attention {lowering} ({why}), {raised} casts to float32"
    return [f"network: {line}, inputs and outputs as the format says"]


def fixed_sizes(contract: Contract, name: str, slots: int) -> tuple[int, ...]:
    """The shape of a tensor, -1 where the number of images decides."""
    sizes = (slots if size == "slots" else size for size in contract[name].shape)
    return tuple(size if isinstance(size, int) else -1 for size in sizes)


def has_sizes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(right in (-1, found) for found, right in zip(shape, wanted, strict=True))


def check_between_engine(
    bundle: Bundle, identity: Mapping[str, Any], kind: str, wanted: Contract, library: Library | None
) -> str:
    """Parse a graph between two calls where there is a library, and look at the layers that the builder listed."""
    again = f"Rebuild the engine with `{build_command(bundle.root, identity)}`"
    if library is not None:
        graph = identity[f"{kind}_graph"]
        tensors, _ = parsed(bundle, graph, library)
        for what, part in (("input", wanted.inputs), ("output", wanted.outputs)):
            kinds = {tensor.name: TYPES[tensor.dtype] for tensor in part}
            found = {name: dtype for name, (dtype, _) in tensors[what].items()}
            if found != kinds:
                raise VerificationError(f"{graph}: its {what}s are {found}, expected {kinds}. {again}")
    if identity[f"{kind}_layers"] is None:
        return f"{kind}: {identity['library']} lists no layers while it builds, so none were looked at"
    layers = load_layers(bundle.path(identity[f"{kind}_layers"]).read_bytes())
    profiles = len(identity[f"{kind}_profiles"])
    if problem := check_between(layers, profiles):
        raise VerificationError(f"{identity[kind]}: {problem}. {again}")
    most = max(Counter(layer.profile for layer in layers).values())
    return f"{kind}: {most} kernels between two calls, none of which waits for the host"


def casts_to_float(model: ir.Model) -> int:
    casts = [node for node in model.graph if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT]
    return sum(node.inputs[0] is not None and node.inputs[0].dtype in LOW for node in casts)


def expected_casts(identity: Mapping[str, Any], model: ir.Model) -> int:
    """The logits', and where attention is not fused the scores' of each, whose softmax is cast back."""
    if identity["types"] == "float":
        return 0
    weights = [node for node in model.graph if node.op_type == "Cast" and node.outputs[0].dtype in LOW]
    sources = [node.inputs[0].producer() for node in weights if node.inputs[0] is not None]
    return 1 + sum(source is not None and source.op_type == "Softmax" for source in sources)


def casts_of_opset_20(bundle: Bundle, identity: Mapping[str, Any], model: ir.Model) -> int:
    """The logits', those of both parts of the scores of each attention, and those into norms and quantizers."""
    if identity["types"] == "float":
        return 0
    source = Counter(node.op_type for node in ir.load(bundle.path(identity["graph"])).graph)
    quantizers = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    return 1 + 2 * source["Attention"] + source["RMSNormalization"] + quantizers


def check_listing(bundle: Bundle, identity: Mapping[str, Any], model: ir.Model) -> list[str]:
    """Check the layers that the builder listed; one line a profile says what they are."""
    size = bundle.files[identity["engine"]].bytes
    sizes = f"engine of {size} bytes, {identity['slots']} slots, widths {', '.join(map(str, identity['widths']))}"
    if identity["layers"] is None:
        return [f"{sizes}; {identity['library']} lists no layers while it builds, so none were looked at"]
    layers = load_layers(bundle.path(identity["layers"]).read_bytes())
    wanted, count = expected(model, bundle.model.caches), len(identity["profiles"])
    problems = check_layers(layers, wanted, count) + check_views(layers, readers(model, bundle.model.caches), count)
    weights = weights_of(model)
    problems += check_weights(layers, size, weights, count)
    if problems:
        raise VerificationError(f"{identity['engine']}: {problems[0]}")
    lines = [f"{sizes}; {weights}" if weights.narrow else sizes]
    copied = copied_bytes(layers, wanted.caches, count)
    for index, profile in enumerate(identity["profiles"]):
        queries = f", {profile['queries']} queries" if profile["queries"] else ""
        prompt = f", up to {profile['condition']} rows of a prompt" if profile["condition"] > 1 else ""
        shape = f"batch {profile['images']}, width {profile['width']}{queries}{prompt}"
        made = summary([layer for layer in layers if layer.profile == index])
        lines.append(f"profile {index}, {shape}: {made}, copied caches: {copied[index]} bytes")
    return lines


def summary(layers: list[Layer]) -> str:
    """Products are counted by the type of what they read, or of weights that are narrower still."""
    kinds = Counter(
        "int4" if is_int4_product(layer) else next((t.dtype.lower() for t in layer.inputs), "none")
        for layer in layers
        if is_product(layer)
    )
    products = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    return f"{len(layers)} layers, products: {products}, attention kernels: {len(attention_kernels(layers))}"
