"""Whether a TensorRT engine is the one to load: for this graph, library and device; and how to build the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arforge.runner.bundle import Bundle
from arforge.runner.command_line import command_line
from arforge.runner.errors import EngineError
from arforge.runner.loop_graph import LoopSizes, loop_contract
from arforge.runner.step_graph import Contract, conditioned, lowered_step
from arforge.runner.table_graph import TableSizes, table_contract

ELEMENT_TYPES = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}
"""Of caches, by an identity's `types`, in the words of a contract."""
ROWS_FIRST, SLOTS_FIRST = "rows heads slots size", "slots rows heads size"
"""The order of a cache's dimensions in memory, by an identity's `cache_order`; the second has views."""
RTX_DEFAULT = "8.6"  # the least that TensorRT-RTX builds for where nothing else is asked


def lowered_of(bundle: Bundle, identity: Mapping[str, Any]) -> Contract:
    """The step that an engine was built from."""
    types, own_mask = ELEMENT_TYPES[identity["types"]], identity.get("own_mask", False)
    return lowered_step(
        bundle.model,
        types,
        identity["filters"],
        bundle.sampler.graph,
        own_mask=own_mask,
        views=has_views(identity),
        read_only=reads_only(identity),
    )


def has_views(identity: Mapping[str, Any]) -> bool:
    """Whether the caches lie with slots first, and attention reads them by views."""
    return bool(identity.get("cache_order") == SLOTS_FIRST)


def reads_only(identity: Mapping[str, Any]) -> bool:
    """Whether the engine only reads its caches, and the runner puts each step's keys and values there."""
    return "caches" in identity and identity["caches"]["lowering"] == "read-only"


def between_of(bundle: Bundle, identity: Mapping[str, Any]) -> dict[str, Contract]:
    """The graphs between two calls that an engine has, by kind: "loop", "table"."""
    contracts = {"loop": loop_of, "table": table_of}
    return {kind: make(bundle, identity) for kind, make in contracts.items() if identity.get(kind) is not None}


def loop_of(bundle: Bundle, identity: Mapping[str, Any]) -> Contract:
    """The loop graph of an engine that has one."""
    own_mask = identity["own_mask"]
    one_mask = not own_mask and not conditioned(bundle.model)
    sizes = LoopSizes(identity["loop_inputs"], identity["slots"], one_mask, own_mask)
    return loop_contract(bundle.model, sizes, bundle.sampler.graph)


def table_of(bundle: Bundle, identity: Mapping[str, Any]) -> Contract:
    """The table graph of an engine that has one."""
    own_mask = identity["own_mask"]
    one_mask = not own_mask and not conditioned(bundle.model)
    sizes, slots = TableSizes(**identity["table_sizes"]), identity["slots"]
    return table_contract(bundle.model, sizes, bundle.sampler.graph, slots, one_mask=one_mask, own_mask=own_mask)


def check_identity(
    bundle: Bundle, identity: Mapping[str, Any], library: str | None, compute_capability: str | None
) -> None:
    """Raise EngineError unless the engine was built from the bundle's present graph, by this library, for this GPU.

    `library` such as "tensorrt-rtx 1.7.1.116" and `compute_capability` such as "8.6" are what is to run it; None
    leaves that part out, for a machine that only looks.
    """

    def refuse(problem: str) -> None:
        raise EngineError(f"{problem}: rebuild it with `{build_command(bundle.root, identity)}`")

    what = f"the {identity['target']} {identity['precision']} engine of {bundle.root}"
    for part, other in (("graph", "another graph"), ("weights", "other weights")):
        if bundle.sha256(identity[part]) != identity[f"{part}_sha256"]:
            refuse(f"{what} was built from {other} than the bundle's {identity[part]}")
    if library is not None and not same_library(library, identity["library"]):
        refuse(f"{what} was built by {identity['library']}, here is {library}")
    if compute_capability is not None and not runs_on(identity, compute_capability):
        refuse(f"{what} was built for {devices(identity)}, here is a GPU of compute capability {compute_capability}")


def choose(
    bundle: Bundle, identities: Sequence[Mapping[str, Any]], library: str, compute_capability: str
) -> Mapping[str, Any]:
    """Of a bundle's engines of one target and precision, the one for this library and GPU.

    Raises EngineError if none is, for the one that comes nearest.
    """
    fitting = [identity for identity in identities if runs_on(identity, compute_capability)]
    same = [identity for identity in fitting if same_library(identity["library"], library)]
    chosen = [*same, *fitting, *identities][0]
    check_identity(bundle, chosen, library, compute_capability)
    return chosen


def same_library(one: str, other: str) -> bool:
    """Whether two names of libraries are of one version; what one of them does not say counts for nothing."""
    (target, _, version), (other_target, _, other_version) = one.partition(" "), other.partition(" ")
    numbers = zip(version.split("."), other_version.split("."), strict=False)
    return target == other_target and all(mine == theirs for mine, theirs in numbers)


def runs_on(identity: Mapping[str, Any], compute_capability: str) -> bool:
    listed = identity["compute_capabilities"]
    return compute_capability in listed if listed else number(compute_capability) >= number(RTX_DEFAULT)


def number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))


def devices(identity: Mapping[str, Any]) -> str:
    listed = identity["compute_capabilities"]
    return f"compute capability {', '.join(listed)}" if listed else f"compute capability {RTX_DEFAULT} and later"


def build_command(root: Path, identity: Mapping[str, Any]) -> str:
    """The command that builds an engine like this one."""
    words: list[object] = ["build", root, "--target", identity["target"], "--precision", identity["precision"]]
    options = identity["options"]
    for name in ("compute-capability", "schedule", "width", "prefill-width", "images"):
        for value in options[name]:
            words += [f"--{name}", value]
    if options["attention"] != "auto":
        words += ["--attention", options["attention"]]
    if options.get("caches", "auto") != "auto":
        words += ["--caches", options["caches"]]
    if not options.get("loop", True):
        words.append("--no-loop")
    if not options.get("known", True):
        words.append("--no-known")
    words.append("--filters" if identity["filters"] else "--no-filters")
    if identity["strip_weights"]:
        words.append("--strip-weights")
    return command_line(*words)
