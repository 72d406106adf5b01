"""Loads TensorRT or TensorRT-RTX, which have one Python interface under two names."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from arforge.runner.errors import EngineError

RTX = "tensorrt-rtx"
MODULES = {"tensorrt": "tensorrt", RTX: "tensorrt_rtx"}
MINIMUM = {"tensorrt": (10, 3), RTX: (1, 7)}
INSTALL = {
    "tensorrt": "pip install 'arforge[tensorrt]' (its libraries come from NVIDIA's own package index)",
    RTX: "pip install 'arforge[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class Library:
    target: str
    trt: Any  # the module
    version: str
    recorder: Any  # the process's one logger, an ILogger with `errors`, `layers` and `memory`

    @property
    def name(self) -> str:
        """As an engine's identity names it."""
        return f"{self.target} {self.version}"

    @property
    def compute_capabilities(self) -> list[str]:
        """Those that an engine can be built for from afar, such as "8.6"; none where it is built on its device."""
        if self.target != RTX:
            return []
        names = [name[2:] for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        return [f"{name[:-1]}.{name[-1]}" for name in names]

    def reason(self, otherwise: str) -> str:
        """The first error that the library has logged since the recorder was cleared."""
        errors = [message.strip() for message in self.recorder.errors if not is_noise(message)]
        return errors[0] if errors else otherwise


@lru_cache(maxsize=2)
def load_library(target: str) -> Library:
    """Raises EngineError if the library is missing or too old."""
    trt = import_library(target)
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM[target]:
        wanted = ".".join(map(str, MINIMUM[target]))
        raise EngineError(f"{target} {version} is too old, {wanted} is needed: {INSTALL[target]}")
    return Library(target, trt, version, make_recorder(trt))


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
    """A logger that keeps errors, the list of the engine's layers that the builder ends with, and memory that it told.

    That list is the engine inspector's; reading it here needs no GPU, which loading the engine would.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""
            self.memory: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message
            elif message.startswith("Total ") and " Memory: " in message:
                self.memory.append(message)

        def clear(self) -> None:
            self.errors.clear()
            self.layers = ""
            self.memory.clear()

    return Recorder()


def is_noise(message: str) -> bool:
    """Without a GPU the library reports that it looked for one."""
    return "CUDA driver version is insufficient" in message or "cudaError" in message
