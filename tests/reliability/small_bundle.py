"""A bundle that opens and cannot run, made in a moment without torch: what readers are attacked with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arforge.runner.backends.tensorrt_identity import build_command, check_identity, choose
from arforge.runner.bundle import BuiltEngine, Bundle, open_bundle
from arforge.runner.bundle.writer import file_facts
from arforge.runner.schedules.file import dump
from arforge.runner.schedules.specification import compile_schedule

GRID = (4, 4)
SPECIFICATION = "zipar:2,cfg-interval=3"
STEP, WEIGHTS, SCHEDULE = "graphs/fp32/step.onnx", "graphs/fp32/weights/model.weights", "schedules/zipar-2.schedule"
NATIVE, RTX = "engines/onnxruntime-fp32-cpu/engine-1.json", "engines/tensorrt-rtx-fp32-rtx/engine-2.json"
ENGINE_FILES = {part: f"engines/tensorrt-rtx-fp32-rtx/{part}" for part in ("lowered", "engine", "decoder")}
MODEL = {
    "family": "llamagen", "variant": None, "config": {"dim": 8}, "order": "raster", "grid": list(GRID),
    "vocabulary": 16, "dim": 8,
    "condition": {"kind": "class", "classes": 3, "first_class": 16, "null_class": 19}, "specials": [], "row_end": None,
    "labels": None, "source_precision": "fp32", "stored_precision": "fp32",
    "queries": False, "positions": "grid", "position_rows": 17,
    "layers": 2, "caches": 2, "kv_heads": 1, "head_size": 8, "parameters": 1000,
}  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


def write_small_bundle(root: Path) -> Path:
    """The bundle, with an engine of each kind, in the new folder `root`."""
    schedule = compile_schedule(SPECIFICATION, GRID)
    for path in (STEP, WEIGHTS, *ENGINE_FILES.values()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "schedules").mkdir()
    (root / SCHEDULE).write_bytes(dump(schedule))
    facts = file_facts(root)
    (root / NATIVE).parent.mkdir()
    (root / NATIVE).write_text(json.dumps(native_identity(facts[STEP].sha256)))
    (root / RTX).write_text(json.dumps(rtx_identity(facts[STEP].sha256, facts[WEIGHTS].sha256)))
    stored = {
        "specification": schedule.specification, "path": SCHEDULE, "steps": len(schedule.steps),
        "slots": schedule.slots, "widths": list(schedule.widths),
    }  # fmt: skip
    manifest = {
        "format": "arforge-bundle",
        "version": 2,
        "model": MODEL,
        "image_tokenizer": {
            "kind": "vq",
            "codebook_size": 16,
            "codebook_width": 8,
            "downsampling": 2,
            "image_size": [8, 8],
        },
        "text_tokenizer": None,
        "graphs": [{"name": "step", "precision": "fp32", "path": STEP, "weights": WEIGHTS}],
        "files": {path: asdict(facts) for path, facts in file_facts(root).items()},
        "schedules": [stored],
        "sampler": {"kind": "uniform", "guidance": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "engines": [
            {"target": "onnxruntime", "precision": "fp32", "device": "cpu", "path": NATIVE},
            {"target": "tensorrt-rtx", "precision": "fp32", "device": "rtx", "path": RTX},
        ],
        "provenance": {"arforge": "0", "checkpoint": None},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def native_identity(graph_sha256: str) -> dict[str, Any]:
    return {
        "target": "onnxruntime", "precision": "fp32", "device": "cpu", "graph": STEP, "graph_sha256": graph_sha256,
        "library": "onnxruntime 1.31.1", "machine": "here", "widths": [1, 2],
    }  # fmt: skip


def rtx_identity(graph_sha256: str, weights_sha256: str) -> dict[str, Any]:
    return {
        "target": "tensorrt-rtx", "precision": "fp32", "device": "rtx", "library": "tensorrt-rtx 1.7.1.116",
        "compute_capabilities": ["8.6"], "graph": STEP, "graph_sha256": graph_sha256, "weights": WEIGHTS,
        "weights_sha256": weights_sha256, **ENGINE_FILES, "layers": None, "timing_cache": None, "decoder_reason": None,
        "types": "float", "tf32": False, "attention": {"lowering": "decomposed", "reason": "as asked"},
        "filters": False, "strip_weights": True, "slots": 24, "widths": [1, 2], "prefill_widths": [],
        "profiles": [{"images": 1, "width": width, "queries": 0, "condition": 0} for width in (1, 2)],
        "options": {"compute-capability": ["8.6"], "schedule": ["ntp"], "width": [1], "prefill-width": [],
                    "images": [1], "attention": "auto"},
    }  # fmt: skip


def edit_manifest(root: Path, change: Edit) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def put(root: Path, path: str, content: bytes) -> None:
    """Another content of a file, whose size the manifest knows."""
    (root / path).write_bytes(content)
    edit_manifest(root, lambda manifest: manifest["files"][path].update(bytes=len(content)))


def use(root: Path) -> Bundle:
    """Everything that readers do with a bundle before an engine is loaded; only an ArforgeError may come out."""
    bundle = open_bundle(root)
    for name in bundle.specifications:
        bundle.schedule(name)
    for engine in bundle.engines:
        use_identity(bundle, engine)
    return bundle


def use_identity(bundle: Bundle, engine: BuiltEngine) -> None:
    identity = bundle.identity(engine)
    if engine.target != "onnxruntime":
        build_command(bundle.root, identity)
        check_identity(bundle, identity, None, None)
        choose(bundle, [identity], identity["library"], "8.6")


def nodes(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all values in a JSON value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from nodes(inner, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with another value at that place; `path` may lead to a key that is not there."""
    if not path:
        return new
    if not isinstance(value, dict | list):
        return value
    copy: Any = value.copy()
    key: Any = path[0]
    if isinstance(copy, list) and not (isinstance(key, int) and key < len(copy)):
        return copy
    copy[key] = replaced(copy[key] if isinstance(copy, list) else copy.get(key), path[1:], new)
    return copy
