"""A bundle's TensorRT engine opened twice: by C++ on the stand-in library, by Python on `fake_gpu`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpp_abi
import pytest
from fake_gpu import RTX, FakeGpu, fake_library
from launch_counts import BUNDLES, COUNTS

from arforge.runner import Runner, open_bundle
from arforge.runner.backends.image_codec import OnnxRuntimeCodec
from arforge.runner.backends.tensorrt_codec import TensorRTCodec
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import choose
from arforge.runner.conditioner import Conditioner
from arforge.runner.loop_graph import LOOK_EVERY

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classes": ("bundle", {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "filters": True}),
    "jacobi": ("bundle", {"schedules": ["ntp", "jacobi:6"], "images": [1, 3], "filters": True}),
    "features": ("text_bundle", {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "filters": True}),
    "chunks": ("text_bundle", {"schedules": ["zipar:2"], "images": [2], "prefill_widths": [4, 16]}),
    "ids": (
        "ids_bundle",
        {"schedules": ["ntp", "zipar:2"], "images": [2], "filters": True, "prefill_widths": [4, 16]},
    ),
    "par": ("par_bundle", {"schedules": ["par:4"], "images": [1, 2]}),
    "arpg": ("arpg_bundle", {"schedules": ["arpg:3"], "images": [3]}),
    "noise": ("noise_bundle", {"schedules": ["jacobi:6"], "images": [2]}),
    "noise-table": ("noise_bundle", {"schedules": ["zipar:4"], "images": [2]}),
    "mixed": ("bundle", {"schedules": ["zipar:4", "ntp", "jacobi:6"], "images": [2]}),
    "features-ahead": ("text_bundle", {"schedules": ["ntp", "jacobi:5"], "images": [1, 2], "filters": True}),
    "ids-ahead": ("ids_bundle", {"schedules": ["ntp", "jacobi:5"], "images": [2], "filters": True}),
    "inpainting": ("arpg_bundle", {"schedules": ["arpg:5", "arpg:24"], "images": [2], "widths": [9]}),
    "zipar": ("bundle", {"schedules": ["zipar:4"], "images": [2]}),
    "host": ("par_bundle", {"schedules": ["par:4"], "images": [1, 3], "loop": False}),
    **{f"counts {one}": (BUNDLES[one], {"schedules": [one]}) for one in COUNTS},
    "counts ntp by the host": ("bundle", {"schedules": ["ntp"], "loop": False}),
    "only-read": (
        "bundle",
        {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "filters": True, "caches": "read-only"},
    ),
    "only-read-ahead": ("bundle", {"schedules": ["ntp", "jacobi:6"], "images": [3], "caches": "read-only"}),
    "only-read-prompts": (
        "text_bundle",
        {"schedules": ["zipar:2"], "images": [2], "prefill_widths": [4, 16], "caches": "read-only"},
    ),
    "views": (
        "grouped_bundle",
        {"schedules": ["ntp", "zipar:2"], "images": [1, 3], "filters": True, "attention": "view"},
    ),
    "views-ahead": ("grouped_bundle", {"schedules": ["ntp", "jacobi:6"], "attention": "view"}),
    "views-prompts": (
        "text_bundle",
        {
            "schedules": ["ntp", "zipar:2"],
            "images": [1, 3],
            "filters": True,
            "prefill_widths": [4, 16],
            "attention": "view",
        },
    ),
    "views-par": ("par_bundle", {"schedules": ["par:4"], "images": [1, 2], "attention": "view"}),
    "views-arpg": ("arpg_bundle", {"schedules": ["arpg:3"], "images": [3], "attention": "view"}),
}
"""Bundles, by their fixtures, and what an engine is built for."""


class Counts(ctypes.Structure):
    """Of the stand-in GPU, since the process began."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "allocations",
            "waits",
            "launches",
            "captures",
            "copies",
            "largest_copy",
            "moved",
            "sent",
            "fetched",
        )
    )


@dataclass(frozen=True)
class StandIn:
    """The C++ library that was built with it."""

    build: Any  # conftest.Build

    @property
    def library(self) -> ctypes.CDLL:
        return cpp_abi.load(self.build.library)

    @property
    def options(self) -> dict[str, Any]:
        """Another TensorRT-RTX may be in this process, of the same name."""
        return {"target": RTX, "plugin": str(self.build.tensorrt / "lib/libtensorrt_rtx.so.1"), "threads": 1}

    def counts(self) -> Counts:
        found = Counts()
        ctypes.CDLL(str(self.build.tensorrt / "lib/libcudart.so")).stand_in_count(ctypes.byref(found))
        return found

    def open(self, path: Path, precision: str = "fp32", **options: Any) -> cpp_abi.Runner:
        return cpp_abi.Runner(self.library, path, **{**self.options, "precision": precision, **options})

    def refused(self, path: Path, precision: str = "fp32", **options: Any) -> str:
        """What is said of an engine that is not opened."""
        with pytest.raises(cpp_abi.Failure) as failure:
            self.open(path, precision, **options)
        assert failure.value.status == cpp_abi.STATUS["engine"]
        return failure.value.message


def counted(stand_in: StandIn, work: Callable[[], Any]) -> tuple[Any, tuple[int, ...]]:
    """With launches, waits, bytes to the device, bytes back, and allocations."""
    names = ("launches", "waits", "sent", "fetched", "allocations")
    before = stand_in.counts()
    result = work()
    after = stand_in.counts()
    return result, tuple(getattr(after, name) - getattr(before, name) for name in names)


def open_python(
    path: Path,
    precision: str = "fp32",
    gpu: FakeGpu | None = None,
    version: str | None = None,
    look_every: int = LOOK_EVERY,
    original: Path | None = None,
) -> Runner:
    """The same engine in Python, on a GPU and a library of that version that are not there.

    `original`: the bundle as it was built, where the identity says something else.
    """
    bundle, gpu = open_bundle(path), gpu or FakeGpu()
    identities = bundle.identities(RTX, precision)
    library = fake_library(gpu, version or version_of(path, precision))
    built = open_bundle(original or path)
    for identity in built.identities(RTX, precision):
        library.trt.add(built, identity)
    chosen = choose(bundle, identities, library.name, gpu.compute_capability)
    engine = TensorRTEngine(bundle, chosen, library, gpu, look_every)  # type: ignore[arg-type]
    codec = TensorRTCodec(bundle, engine, OnnxRuntimeCodec(bundle, 1))
    return Runner(bundle, engine, codec, Conditioner(bundle, 1))


def version_of(path: Path, precision: str = "fp32") -> str:
    """That of the library which built a bundle's engine."""
    return str(open_bundle(path).engine(RTX, precision)["library"].split()[1])


StandIns = Callable[..., Path]
"""What the fixture `stand_ins` gives."""
