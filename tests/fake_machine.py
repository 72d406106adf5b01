"""A machine with a GPU that is not there, for code that opens engines by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fake_gpu import FakeGpu, fake_library

from arforge.engines import tensorrt_run, tensorrt_verify
from arforge.runner.backends import cuda
from arforge.runner.backends.tensorrt_engine import TensorRTEngine
from arforge.runner.backends.tensorrt_identity import choose
from arforge.runner.backends.tensorrt_library import Library


def pretend(put: Callable[[Any, str, Any], None]) -> None:
    """`put` sets an attribute, as `setattr` and monkeypatches do. Engines run on `fake_gpu`; builders are real."""
    put(cuda, "Gpu", FakeGpu)
    put(tensorrt_run, "Gpu", FakeGpu)
    put(tensorrt_run, "TensorRTEngine", lambda bundle, identity, _, gpu: opened(bundle, identity, gpu))
    put(tensorrt_verify, "gpu_compute_capability", lambda: FakeGpu.compute_capability)
    put(TensorRTEngine, "built", classmethod(built))


def built(cls: type[TensorRTEngine], target: str, bundle: Any, precision: str, *more: Any) -> TensorRTEngine:
    identities, gpu = bundle.identities(target, precision), FakeGpu()
    chosen = choose(bundle, identities, identities[0]["library"], gpu.compute_capability)
    return cls(bundle, chosen, library_of(bundle, chosen, gpu), gpu, *more)  # type: ignore[arg-type]


def opened(bundle: Any, identity: Any, gpu: Any) -> TensorRTEngine:
    return TensorRTEngine(bundle, identity, library_of(bundle, identity, gpu), gpu)


def library_of(bundle: Any, identity: Any, gpu: FakeGpu) -> Library:
    """The stand-in of the library that built it, which knows its engines."""
    target, _, version = identity["library"].partition(" ")
    library = fake_library(gpu, version, target)
    library.trt.add(bundle, identity)
    return library
