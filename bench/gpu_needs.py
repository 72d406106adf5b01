"""What the GPU's checks need beyond Python itself, part by part, and what of it a machine lacks."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping

RUN = ("numpy", "onnxruntime")
GRAPHS = ("onnx", "onnx_ir", "ml_dtypes")
EXPORT = (*RUN, *GRAPHS, "torch", "onnxscript", "safetensors", "fastjsonschema")
LIBRARIES = {"tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt": ("tensorrt", "tensorrt_bindings")}
"""The modules of each TensorRT: one of both is enough."""
INSTALLED_BY = {
    "cuda.bindings": "cuda-bindings",
    "onnx_ir": "onnx-ir",
    "ml_dtypes": "ml-dtypes",
    "tensorrt-rtx": "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}
"""Packages, where they have other names than what is imported."""


def needs(part: str) -> tuple[str, ...]:
    """Modules, and TensorRTs by their target, that a part of that name imports."""
    kind, _, runtime = part.removesuffix(", more").partition(" ")
    if kind.startswith("models"):
        return EXPORT
    if runtime in LIBRARIES:
        return (*RUN, *GRAPHS, "cuda.bindings", "polygraphy", runtime)
    return {"torch-compile": (*EXPORT, "cuda.bindings"), "onnxruntime-cuda": (*RUN, *GRAPHS, "cuda.bindings")}.get(
        runtime, RUN
    )


def lacking() -> dict[str, str]:
    """Of all that parts need, what this machine cannot import, and why."""
    found = {}
    for name in dict.fromkeys([*EXPORT, "cuda.bindings", "polygraphy"]):
        if reason := failure([name]):
            found[name] = reason
    return found | {target: reason for target, names in LIBRARIES.items() if (reason := failure(names))}


def failure(names: Iterable[str]) -> str | None:
    """Why none of these modules can be imported; None where one can."""
    reasons = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
        else:
            return None
    return reasons[-1]


def hint(part: str, lacks: Mapping[str, str]) -> str | None:
    """What is said of a part that needs something of `lacks`; None of one that does not."""
    missing = [name for name in needs(part) if name in lacks]
    if not missing:
        return None
    reasons = "; ".join(f"{name}: {lacks[name]}" for name in missing)
    packages = " ".join(INSTALLED_BY.get(name, name) for name in missing)
    return f"this machine lacks {', '.join(missing)} ({reasons}): pip install {packages}, or name a folder with --path"
