"""Operators of our own in place of ONNX Runtime's, where there are any: products in blocks, and attention.

They are a library that ONNX Runtime loads (`runner/cpp/src/kernels`), for x86-64 with VNNI: what it computes is
the same but for the order of its float32 sums. `arforge kernels` compiles it and leaves it where it is looked for. Int8
and int4 engines have a graph for all of its operators beside the one for ONNX Runtime's; in that one, products in
blocks are renamed as it is opened, so every engine runs with and without.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from arforge.runner.errors import EngineError
from arforge.version import VERSION

NAME = "arforge's kernels"
PLACE = "ARFORGE_KERNELS"  # of the environment: the library's file, or OFF
OFF = "off"
GENERATION = 2  # of the library's operators
FLAGS = {"avx512_vnni", "avx_vnni"}  # of a processor that has the instructions, as Linux names them
THEIRS, OURS = (b"\x22\x0b" + name for name in (b"MatMulNBits", b"MatMulBlock"))
"""Of a node: field 4, the length of the operator's name, and the name; both as long, so nothing else moves."""

OWN = b"\x3a\x07arforge"
"""Of a node whose operator only the library has: field 7, the length of the operator's domain, and that."""


def usual_place() -> Path:
    """Where `arforge kernels` leaves the library and where it is looked for."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "arforge" / f"libarforge_kernels-{VERSION}.so"


def named() -> str:
    """What the environment says of them; nothing where it says nothing."""
    return os.environ.get(PLACE, "")


def find_kernels() -> Path | None:
    """The library to use; None where there is none, it is off, or this processor lacks the instructions.

    Raises EngineError if the environment names a library that cannot be loaded.
    """
    name = named()
    if name == OFF:
        return None
    path = Path(name) if name else usual_place()
    if not name and not path.exists():
        return None
    return path if runs_here(path) else None


@cache
def runs_here(path: Path) -> bool:
    """Whether this processor can run a library of kernels. Raises EngineError if it is none, or of another version."""
    advice = f"compile it with `arforge kernels`, or set {PLACE}={OFF}"
    try:
        library = ctypes.CDLL(str(path.resolve()))
        supported = bool(library.arforge_kernels_supported())
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} is no library of {NAME} ({error}): {advice}") from None
    if getattr(library, "arforge_kernels_generation", int)() != GENERATION:
        raise EngineError(f"{path} has the operators of another version of arforge: {advice}")
    return supported


def worth_compiling(information: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is Linux on a processor that has the instructions, and nobody has said or done anything yet."""
    try:
        flags = information.read_text("utf-8", errors="replace").split()
    except OSError:
        flags = []
    return not FLAGS.isdisjoint(flags) and not named() and find_kernels() is None


def with_kernels(graph: bytes) -> bytes | None:
    """A graph whose products in blocks are the library's; None where it has none, nor others of its operators."""
    return graph.replace(THEIRS, OURS) if THEIRS in graph or OWN in graph else None
