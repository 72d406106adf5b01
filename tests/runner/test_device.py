from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from arforge.runner import device
from arforge.runner.errors import EngineError


def test_the_device_is_named_with_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor: 0\nmodel name\t: Some CPU @ 3 GHz\nprocessor: 1\nmodel name\t: Some CPU @ 3 GHz\n")
    monkeypatch.setattr(device, "CPU_FACTS", facts)
    monkeypatch.setattr(device.os, "cpu_count", lambda: 2)
    assert device.device_name() == "Some CPU @ 3 GHz, 2 cores"
    monkeypatch.setattr(device, "CPU_FACTS", tmp_path / "missing")
    assert device.device_name().endswith(", 2 cores")


@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(device, "STREAMED", 1 << 20)
    ticks = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(ticks))
    assert device.streaming_bandwidth(threads) == (1 << 20) / 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_peak_memory_grows_with_what_is_taken() -> None:
    before = device.peak_memory()
    assert before is not None
    taken = np.ones(before // 8 + (64 << 20) // 8)
    after = device.peak_memory()
    assert after is not None
    assert after >= taken.nbytes
    assert after > before


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, two of each core, all allowed, with no limits."""
    monkeypatch.setattr(device, "TOPOLOGY", tmp_path / "cpu")
    monkeypatch.setattr(device, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(device, "GROUP_FILES", tmp_path / "cgroup")
    monkeypatch.setattr(device.os, "cpu_count", lambda: 8)
    allow(monkeypatch, set(range(8)))
    for number in range(8):
        write(tmp_path / f"cpu/cpu{number}/topology/thread_siblings_list", f"{number % 4},{number % 4 + 4}\n")
    return tmp_path


def allow(monkeypatch: pytest.MonkeyPatch, processors: set[int]) -> None:
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: processors, raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cores_are_those_of_the_affinity_mask(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.available_cores() == device.machine_cores() == 4
    for processors, cores in (({0}, 1), ({0, 4}, 1), ({0, 1, 4}, 2), ({4, 5, 6, 7}, 4)):
        allow(monkeypatch, processors)
        assert device.available_cores() == cores
    assert device.machine_cores() == 4
    monkeypatch.setattr(device, "TOPOLOGY", machine / "missing")
    assert device.available_cores() == 4  # processors, where nothing tells their cores


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("?", 4)]
)
@pytest.mark.parametrize("place", ["", "/jobs", "/jobs/one"])
def test_cores_are_bounded_by_the_container(machine: Path, limit: str, cores: int, place: str) -> None:
    write(machine / "groups", "0::/jobs/one\n")
    write(machine / f"cgroup{place}/cpu.max", f"{limit}\n")
    assert device.available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("300000", 3), ("50000", 1)])
@pytest.mark.parametrize("place", ["cpu,cpuacct/docker/id", "cpu,cpuacct", "cpu"])
def test_cores_are_bounded_by_a_container_of_the_first_version(
    machine: Path, quota: str, cores: int, place: str
) -> None:
    write(machine / "groups", "5:memory:/docker/id\n4:cpu,cpuacct:/docker/id\n1:name=systemd:/docker/id\n")
    write(machine / f"cgroup/{place}/cpu.cfs_quota_us", f"{quota}\n")
    write(machine / f"cgroup/{place}/cpu.cfs_period_us", "100000\n")
    assert device.available_cores() == cores


def test_threads_have_a_bound() -> None:
    assert [device.check_threads(threads) for threads in (None, 1, 64)] == [None, 1, 64]
    for threads in (0, -1, 100_000, True, "4", 2.0):
        with pytest.raises(EngineError, match="threads: use"):
            device.check_threads(threads)  # type: ignore[arg-type]
