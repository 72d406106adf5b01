"""Compiles the kernels of `runner/cpp/src/kernels` for ONNX Runtime in Python; the C++ runner has them in itself."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from arforge import runner
from arforge.runner.errors import EngineError

SOURCES = Path(runner.__file__).parent / "cpp/src"
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
HEADER = "onnxruntime_cxx_api.h"


def compile_kernels(headers: Path, output: Path) -> None:
    """Write the library. `headers`: the folder of ONNX Runtime's, of any version that is not newer than the library.

    The compiler is that of $CXX, or the first of COMPILERS that is found. Raises EngineError without headers or a
    compiler, and with the compiler's words where it fails.
    """
    if not (headers / HEADER).is_file():
        raise EngineError(
            f"{headers} has no {HEADER}: name the folder include/ of ONNX Runtime's release archive, or of what "
            "`python runner/cpp/prepare_onnxruntime.py --output FOLDER` makes"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted((SOURCES / "kernels").glob("*.cpp"))
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".compiling-") as folder:
        made = Path(folder) / output.name
        call = [*compiler(), *OPTIONS, f"-I{SOURCES}", f"-I{headers}", *map(str, sources), "-o", str(made)]
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603 -- $CXX is the user's
        if done.returncode:
            raise EngineError(f"{shlex.join(call)} failed: {done.stderr.strip()}")
        made.replace(output)


def compiler() -> list[str]:
    """The C++ compiler, and options that $CXX may give it. Raises EngineError if there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    for name in given[:1] or COMPILERS:
        if shutil.which(name):
            return [name, *given[1:]]
    raise EngineError(f"no C++ compiler ({', '.join(given[:1] or COMPILERS)}): install one, or set CXX")
