from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from arforge.runner import device


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


def test_jetson_power_is_volts_times_amperes(tmp_path: Path) -> None:
    assert device.ina3221_power(tmp_path) is None
    broken = tmp_path / "1-0040/hwmon/hwmon3"
    broken.mkdir(parents=True)
    (broken / "in1_input").write_text("5000\n")
    assert device.ina3221_power(tmp_path) is None
    place = tmp_path / "1-0041/hwmon/hwmon4"
    place.mkdir(parents=True)
    (place / "in1_input").write_text("19072\n")
    (place / "curr1_input").write_text("520\n")
    assert device.ina3221_power(tmp_path) == pytest.approx(9.917, abs=1e-3)


def test_a_gpu_that_tells_its_power_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "ina3221_power", lambda root: 9.0)
    monkeypatch.setattr(device, "nvml_power", lambda: 250.0)
    assert device.power() == 250.0
    monkeypatch.setattr(device, "nvml_power", lambda: None)
    assert device.power() == 9.0


class Nvml:
    """What the management library's functions give: status codes, and 61.5 W in milliwatts."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            if name == "nvmlDeviceGetPowerUsage":
                arguments[1]._obj.value = 61_500  # type: ignore[attr-defined]
            return 999 if name == self.failing else 0

        return call


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetPowerUsage"])
def test_gpu_power_is_in_watts_or_nothing(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Nvml())
    assert device.nvml_power() == 61.5
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Nvml(failing))
    assert device.nvml_power() is None
