"""Bundles whose TensorRT engines are texts that the C++ stand-in reads (`runner/cpp/programs/tensorrt_stand_in`)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from fake_gpu import RTX, FakeGpu, FakeTensorRT, closed, digest

from arforge.engines.lowered_session import runnable
from arforge.runner import open_bundle

ENTERPRISE = "tensorrt 11.1.0.106"


def stand_in_bundle(source: Path, path: Path) -> Path:
    """A copy of a bundle with TensorRT-RTX engines, each of which the stand-in runs."""
    shutil.copytree(source, path)
    opened, known = open_bundle(path), FakeTensorRT(FakeGpu())
    for engine in opened.engines:
        if engine.target == RTX:
            identity = opened.identity(engine)
            known.add(opened, identity)
            for name in ("engine", "decoder", "loop", "table"):
                if file := identity.get(name):
                    graph, profiles = known.known[digest(opened.path(file).read_bytes())]
                    rewrite(path, file, engine_text(graph, profiles))
    return path


def retargeted(source: Path, path: Path, target: str) -> Path:
    """A copy of such a bundle whose engines say that they are another target's."""
    shutil.copytree(source, path)
    for engine in open_bundle(path).engines:
        if engine.target == RTX:
            change_identity(path, engine.path, lambda found: found.update(target=target, library=ENTERPRISE))

    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            if engine["target"] == RTX:
                engine["target"] = target

    edit_manifest(path, change)
    return path


def engine_text(graph: Path, profiles: list[dict[str, tuple[int, ...]]], *more: str) -> bytes:
    """What the stand-in reads, of a graph that it may run; that is put beside the bundle."""
    own = graph.parents[2].with_suffix(".graphs") / f"{graph.parent.name}-{graph.name}"
    own.parent.mkdir(exist_ok=True)
    model = ir.load(graph)
    lines = ["arforge-stand-in", f"graph {own}", f"weights {graph.parent}", *more]
    lines += [f"view {name} {' '.join(map(str, shape))}" for name, shape in closed(model).items()]
    own.write_bytes(runnable(model))
    for shapes in profiles:
        lines.append("profile")
        lines += [f"shape {name} {' '.join(map(str, shape))}" for name, shape in shapes.items()]
    return "\n".join(lines).encode()


def rewrite(root: Path, path: str, content: bytes) -> None:
    """Another content, which the manifest knows."""
    (root / path).unlink()
    (root / path).write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(root, lambda found: found["files"].update({path: facts}))


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((root / "manifest.json").read_text())
    change(content)
    (root / "manifest.json").write_text(json.dumps(content))


def change_identity(root: Path, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((root / path).read_text())
    change(content)
    rewrite(root, path, json.dumps(content).encode())


def identity_path(root: Path) -> str:
    return next(engine.path for engine in open_bundle(root).engines if engine.target == RTX)


def copied(source: Path, path: Path, **changes: Any) -> Path:
    """A copy whose identity says something else."""
    shutil.copytree(source, path)
    change_identity(path, identity_path(path), lambda identity: identity.update(changes))
    return path


def spoil_token(original: Path, path: Path, token: int) -> Path:
    """A copy of a bundle of classes in which that token, fed, makes numbers that are none."""
    shutil.copytree(original, path)
    engine = open_bundle(path).engine(RTX, "fp32")["engine"]
    text = (path / engine).read_text()
    rewrite(path, engine, text.replace(f"weights {original}", f"weights {path}").encode())
    (graph,) = re.findall(r"^graph (.*)$", text, re.MULTILINE)
    initializers = onnx.load(graph, load_external_data=False).graph.initializer
    (table,) = (one for one in initializers if one.name == "tok_embeddings.weight")
    facts = {entry.key: entry.value for entry in table.external_data}
    (weights,) = path.rglob(facts["location"].split("/")[-1])
    content = bytearray(weights.read_bytes())
    row = 4 * table.dims[1]
    first = int(facts.get("offset", 0)) + token * row
    content[first : first + row] = np.full(row // 4, np.nan, np.float32).tobytes()
    weights.unlink()
    weights.write_bytes(content)
    return path
