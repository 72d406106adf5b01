"""Checks a bundle without torch: structure, hashes, schedules, graph contracts, engines, and a short real run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from arforge.runner.bundle import Bundle, open_bundle
from arforge.runner.errors import VerificationError
from arforge.runner.onnxruntime_engine import cache_names, open_session
from arforge.runner.runner import Runner

Report = Callable[[str], None]
FLOAT, INT64, BOOL, UINT8 = "tensor(float)", "tensor(int64)", "tensor(bool)", "tensor(uint8)"
Contract = dict[str, tuple[str, list[str | int]]]


def verify_bundle(root: Path, report: Report) -> Bundle:
    """Run every torch-free check, reporting each; raises the ArforgeError of the first that fails."""
    bundle = open_bundle(root)
    report(f"structure: {len(bundle.manifest['files'])} files, manifest, paths and sizes")
    bundle.check_hashes()
    report("hashes: every file matches its sha256")
    for entry in bundle.manifest["schedules"]:
        schedule = bundle.schedule(entry["specification"])
        report(f"schedule {schedule.specification}: {len(schedule.steps)} steps decide {schedule.cells} cells")
    for graph in bundle.manifest["graphs"]:
        check_contract(bundle, graph["name"], bundle.path(graph["path"]))
        report(f"graph {graph['name']} {graph['precision']}: inputs and outputs as the format says")
    for entry in bundle.manifest["engines"]:
        check_engine(bundle, entry["target"], entry["precision"])
        report(f"engine {entry['target']} {entry['precision']}: same tokens alone and in a batch")
    return bundle


def check_contract(bundle: Bundle, name: str, path: Path) -> None:
    """Raise VerificationError unless the graph has exactly the inputs and outputs of its kind."""
    session = open_session(path, threads=1)
    inputs, outputs = contract(bundle, name)
    for what, expected, values in (("input", inputs, session.get_inputs()), ("output", outputs, session.get_outputs())):
        found: Contract = {value.name: (value.type, list(value.shape)) for value in values}
        for key in expected.keys() | found.keys():
            if expected.get(key) != found.get(key):
                raise VerificationError(
                    f"{path}: {what} {key} is {found.get(key, 'missing')}, expected {expected.get(key, 'none')}: "
                    "export the bundle again"
                )


def contract(bundle: Bundle, name: str) -> tuple[Contract, Contract]:
    """The inputs and outputs of a graph kind, as type and shape."""
    model = bundle.model
    if name in ("decoder", "encoder"):
        tokens: Contract = {"tokens": (INT64, ["images", "rows", "columns"])}
        pixels: Contract = {"images": (UINT8, ["images", "height", "width", 3])}
        return (tokens, pixels) if name == "decoder" else (pixels, tokens)
    cache: tuple[str, list[str | int]] = (FLOAT, ["rows", model.kv_heads, "slots", model.head_size])
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
    stored = [entry["specification"] for entry in bundle.manifest["schedules"]]
    request: dict[str, Any] = {"schedule": stored[0], "guidance": 2.0}
    classes = [0, bundle.model.classes - 1]
    with Runner.open(bundle.root, target=target, precision=precision) as runner:
        together = runner.generate(classes, seeds=[0, 1], **request).tokens
        for index, label in enumerate(classes):
            alone = runner.generate([label], seeds=[index], **request).tokens
            if (alone[0] != together[index]).any():
                raise VerificationError(
                    f"{target} {precision}: class {label} gives other tokens alone than in a batch of two: "
                    "rebuild the engine, and report it where that does not help"
                )
