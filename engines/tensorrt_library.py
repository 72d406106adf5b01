"""Loads TensorRT or TensorRT-RTX, which have one Python interface under two names, and Polygraphy over it."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from arforge.runner.errors import EngineError

RTX = "tensorrt-rtx"
MODULES = {"tensorrt": "tensorrt", RTX: "tensorrt_rtx"}
MINIMUM = {"tensorrt": (11, 0), RTX: (1, 7)}
INSTALL = {
    "tensorrt": "pip install 'arforge[tensorrt]' (its libraries come from NVIDIA's own package index)",
    RTX: "pip install 'arforge[tensorrt-rtx]'",
}
SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


@dataclass(frozen=True)
class Library:
    target: str
    trt: Any  # the module
    version: str
    recorder: Any  # the process's one logger, an ILogger with `errors` and `layers`

    @property
    def compute_capabilities(self) -> list[str]:
        """Those that an engine can be built for from afar, such as "8.6"; none where it is built on its device."""
        if self.target != RTX:
            return []
        names = [name[2:] for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        return [f"{name[:-1]}.{name[-1]}" for name in names]


@lru_cache(maxsize=2)
def load_library(target: str) -> Library:
    """Raises EngineError where the library or Polygraphy is missing or too old, or the other of the two is loaded."""
    trt = import_library(target)
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM[target]:
        wanted = ".".join(map(str, MINIMUM[target]))
        raise EngineError(f"{target} {version} is too old, {wanted} is needed: {INSTALL[target]}")
    os.environ[SWITCH] = str(int(target == RTX))  # read once, when Polygraphy is imported
    try:
        import polygraphy.config
        from polygraphy.backend.trt import util
    except ImportError:
        raise EngineError(f"polygraphy is not installed: {INSTALL[target]}") from None
    if bool(polygraphy.config.USE_TENSORRT_RTX) != (target == RTX):
        raise EngineError(f"this process has loaded the other TensorRT: build for {target} in a process of its own")
    recorder = make_recorder(trt)
    util.TRT_LOGGER = recorder  # TensorRT takes one logger a process, and Polygraphy hands it this
    return Library(target, trt, version, recorder)


def import_library(target: str) -> Any:
    name = MODULES[target]
    for known in (name, f"{name}_bindings"):  # the wheels hold the second; Polygraphy asks for the first
        try:
            sys.modules[name] = module = importlib.import_module(known)
        except ModuleNotFoundError as error:
            if error.name != known:
                raise EngineError(f"{target} is not whole, {error.name} is missing: {INSTALL[target]}") from None
        except ImportError as error:
            raise EngineError(f"{target} cannot be loaded ({error}): {INSTALL[target]}") from None
        else:
            return module
    raise EngineError(f"{target} is not installed: {INSTALL[target]}")


def make_recorder(trt: Any) -> Any:
    """A logger that keeps errors, and the list of the engine's layers that the builder ends with.

    That list is the engine inspector's; reading it here needs no GPU, which loading the engine would.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

        def clear(self) -> None:
            self.errors.clear()
            self.layers = ""

    return Recorder()


@contextmanager
def quiet(what: str, recorder: Any) -> Iterator[None]:
    """Polygraphy without its log; its failures, and the library's, become one EngineError."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    recorder.clear()
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        try:
            yield
        except PolygraphyException as error:
            reasons = [line for line in recorder.errors if not is_noise(line)] or [str(error)]
            raise EngineError(f"{what}: {reasons[0].strip()}") from None


def is_noise(message: str) -> bool:
    """Without a GPU the library reports that it looked for one."""
    return "CUDA driver version is insufficient" in message or "cudaError" in message


def gpu_compute_capability() -> str | None:
    """That of the first GPU, such as "8.6"; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    for value, attribute in ((major, 75), (minor, 76)):
        found = found and driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) == 0
    return f"{major.value}.{minor.value}" if found else None
