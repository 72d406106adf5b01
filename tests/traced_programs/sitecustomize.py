"""On the path of a process, lets its exports take the graphs that were traced before in the session, from $TRACED."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TRACER = "arforge.export.trace"


class Finder(MetaPathFinder):
    """Changes the tracer when it is imported, and imports nothing before."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != TRACER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            sys.path.append(str(Path(__file__).parents[1]))
            from traced_once import remembered

            sys.path.pop()
            module.trace = remembered(Path(os.environ["TRACED"]), module.trace)  # type: ignore[attr-defined]

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
