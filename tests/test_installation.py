"""What `pip install .` in a clone makes, and that Python finds the whole package in the clone and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
LINKED = [name.removeprefix("arforge.") for name in PROJECT["package-dir"] if name != "arforge"]
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
KERNELS = "runner/cpp/src/kernels"
PLACES = "import arforge.runner.runner as r, arforge.cli as c; print(r.__file__); print(c.__file__)"


def python(*words: object, folder: Path, path: Path | None = None) -> str:
    """Run Python in a folder, with `path` in front of what is installed here."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds of the packages, links as links."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "cpp")
    for name in ("arforge", *LINKED):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / KERNELS, folder / KERNELS)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    python("-c", BUILD, "build_wheel", "dist", folder=clone)
    (found,) = (clone / "dist").glob("*.whl")
    return found


def names(archive: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(archive).namelist() if ".dist-info/" not in name}


def test_the_folders_of_the_package_are_links_in_a_clone() -> None:
    for name in LINKED:
        link = ROOT / "arforge" / name
        assert link.is_symlink()
        assert link.readlink().as_posix() == f"../{name}"


def test_a_wheel_holds_every_module_and_schema(wheel: Path) -> None:
    kinds = ("*.py", "*.schema.json", "*.html", "py.typed")
    found = (path.resolve() for name in ("arforge", *LINKED) for kind in kinds for path in (ROOT / name).rglob(kind))
    places = {path.relative_to(ROOT) for path in found if "cpp" not in path.parts}
    kernels = {f"arforge/{KERNELS}/{path.name}" for path in (ROOT / KERNELS).iterdir()}
    assert f"arforge/{KERNELS}/products.cpp" in kernels  # which `arforge kernels` compiles
    wanted = {path.as_posix() if path.parts[0] == "arforge" else f"arforge/{path.as_posix()}" for path in places}
    assert names(wheel) == wanted | kernels


def test_a_source_distribution_makes_the_same_wheel(clone: Path, wheel: Path, tmp_path: Path) -> None:
    python("-c", BUILD, "build_sdist", tmp_path, folder=clone)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    python("-c", BUILD, "build_wheel", tmp_path, folder=source)
    (again,) = tmp_path.glob("*.whl")
    assert names(again) == names(wheel)


def test_an_installed_package_is_whole_in_the_clone_too(clone: Path, wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    for folder, home in ((tmp_path, installed), (clone, clone)):  # `-c` and `-m` look in the present folder first
        places = python("-c", PLACES, folder=folder, path=installed).split()
        assert places == [str(home / "arforge/runner/runner.py"), str(home / "arforge/cli.py")]
        assert python("-m", "arforge", "--version", folder=folder, path=installed).startswith("arforge, version ")
