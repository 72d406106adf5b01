"""What is depended on: ranges for users, one lock for tests, and a licence for every package of it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
UNPINNED = {"arforge", "tensorrt"}  # itself, and what only NVIDIA's index has


@pytest.fixture(scope="module")
def licences() -> Any:
    spec = spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pinned(licences: Any) -> dict[str, str]:
    return {canonicalize_name(name): number for name, number in licences.pinned(ROOT / "constraints.txt").items()}


@pytest.mark.parametrize("text", sorted(set(DIRECT)))
def test_users_get_a_range_that_holds_the_locked_version(text: str, pinned: dict[str, str]) -> None:
    wanted = Requirement(text)
    name = canonicalize_name(wanted.name)
    if name in UNPINNED:
        return
    assert wanted.specifier
    assert wanted.specifier.contains(pinned[name])


def test_the_lock_holds_everything_that_tests_install(licences: Any, pinned: dict[str, str]) -> None:
    asked = licences.needs("arforge", "", set()) | licences.needs("arforge", "test", set())
    assert {"torch", "numpy", "pytest", "onnxruntime"} <= asked
    assert asked <= pinned.keys()


def test_every_locked_package_is_listed_with_its_licence(licences: Any, pinned: dict[str, str]) -> None:
    text = (ROOT / "docs" / "licences.md").read_text()
    rows = {
        canonicalize_name(row[0]): row[1:]
        for row in re.findall(r"^\| (\S+) \| ([\d.]\S*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    }
    assert {name: number for name, (number, _, _) in rows.items()} == pinned
    assert all(stated and needed for _, stated, needed in rows.values())
    looked_at = 0
    for name, (number, stated, _) in rows.items():
        try:
            if version(name).partition("+")[0] != number:
                continue
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        assert licences.licence(name).split() == stated.split()
        looked_at += 1
    assert looked_at > 40
