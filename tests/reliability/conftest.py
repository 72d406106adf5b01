from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from reliability.small_bundle import use, write_small_bundle

LITTLE = 16 << 20  # bytes: what refusing any of these may take


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small bundle to attack, sound as it is."""
    root = write_small_bundle(tmp_path / "small.bundle")
    use(root)
    return root


@pytest.fixture(scope="session")
def _schemas_compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Which takes more than any of the attacks, once a process."""
    use(write_small_bundle(tmp_path_factory.mktemp("once") / "small.bundle"))


@pytest.fixture
def _little_memory(_schemas_compiled: None) -> Iterator[None]:
    """Nothing of a size that the attacker names is allocated while the test runs."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LITTLE
