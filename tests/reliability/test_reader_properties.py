"""Whatever is changed in what a reader is given, it accepts something that can be used, or raises an ArforgeError."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability.small_bundle import NATIVE, RTX, SCHEDULE, nodes, put, replaced, use, write_small_bundle

from arforge.runner import ArforgeError, ScheduleError
from arforge.runner.plan import make_plan
from arforge.runner.schedules.check import capacity
from arforge.runner.schedules.file import PREFIX, load

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e308, True])
)
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["", "..", "/", "../x", "a/./b", "graphs", "fp32", "0" * 64, "\ud800"])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
EDITS = st.lists(st.tuples(st.integers(0, 10**6), JSON), min_size=1, max_size=3)


def edited(value: Any, edits: list[tuple[int, Any]]) -> bytes:
    for number, new in edits:
        places = list(nodes(value))
        value = replaced(value, places[number % len(places)], new)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def bundle_survives(root: Path) -> bool:
    try:
        use(root)
    except ArforgeError as error:
        assert str(error)
        return False
    return True


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("sound") / "small.bundle")


@pytest.fixture
def restored(sound: Path) -> Iterator[Path]:
    """The same bundle for every example; what a test changes is put back."""
    before = {path: path.read_bytes() for path in (sound / name for name in ("manifest.json", NATIVE, RTX, SCHEDULE))}
    yield sound
    for path, content in before.items():
        path.write_bytes(content)


def test_manifests(restored: Path) -> None:
    sound = json.loads((restored / "manifest.json").read_text())
    outcomes = set()

    @settings(max_examples=150)
    @given(EDITS)
    def survives(edits: list[tuple[int, Any]]) -> None:
        (restored / "manifest.json").write_bytes(edited(sound, edits))
        outcomes.add(bundle_survives(restored))

    survives()
    assert False in outcomes


@pytest.mark.parametrize("path", [NATIVE, RTX])
def test_identities(restored: Path, path: str) -> None:
    sound = json.loads((restored / path).read_text())
    manifest = (restored / "manifest.json").read_bytes()
    outcomes = set()

    @settings(max_examples=100)
    @given(EDITS)
    def survives(edits: list[tuple[int, Any]]) -> None:
        (restored / "manifest.json").write_bytes(manifest)
        put(restored, path, edited(sound, edits))
        outcomes.add(bundle_survives(restored))

    survives()
    assert False in outcomes


def test_schedules(restored: Path) -> None:
    data = (restored / SCHEDULE).read_bytes()
    start = PREFIX.size + PREFIX.unpack_from(data)[2]
    words = (len(data) - start) // 4
    entries = st.one_of(st.integers(-2, 40), st.integers(-(2**31), 2**31 - 1))

    @settings(max_examples=200)
    @given(st.lists(st.tuples(st.integers(0, words - 1), entries), min_size=1, max_size=3))
    def survives(changes: list[tuple[int, int]]) -> None:
        changed = bytearray(data)
        for word, value in changes:
            struct.pack_into("<i", changed, start + 4 * word, value)
        try:
            schedule = load(bytes(changed), "x.schedule")
        except ScheduleError as error:
            assert str(error)
            return
        plan = make_plan(schedule, None)
        assert plan.slots <= capacity(schedule)
        assert sorted(schedule.order) == list(range(schedule.cells))

    survives()
