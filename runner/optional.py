"""Optional packages: one line that names what is missing, and the extra that has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from arforge.runner.errors import ArforgeError

INSTALLED_AS = {
    "onnx_ir": "onnx-ir",
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "bs4": "beautifulsoup4",
}  # where an import has another name
NOTES = {"torch": " (an unpinned torch is the CUDA build; for the CPU one install torch first)"}
OURS = "arforge"


@contextmanager
def needed(doing: str, extra: str, kind: type[ArforgeError] = ArforgeError) -> Iterator[None]:
    """Around imports of optional packages: raises `kind` if one is missing or cannot be loaded.

    `doing`: what they are for, such as "building"; `extra`: of arforge, the one that has them.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module == OURS:  # no package is missing: the fault is here
            raise
        install = f"pip install '{OURS}[{extra}]'{NOTES.get(module, '')}"
        package = INSTALLED_AS.get(module, module)
        if isinstance(error, ModuleNotFoundError):
            raise kind(f"{doing} needs {package}: {install}") from error
        raise kind(f"{doing} needs {package or 'a package'}, which cannot be loaded ({error}): {install}") from error


def installed(module: str) -> bool:
    """Whether a top-level module is there to be imported; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a stand-in in sys.modules
        return True
