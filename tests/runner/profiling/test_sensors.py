"""Power, clocks and throttling, on a folder like a Jetson's and a stand-in of NVIDIA's library."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_jetson import MONITOR, make_nvml, make_sysfs, write

from arforge.runner.profiling.nvml import Nvml
from arforge.runner.profiling.sampling import Sampler, mean_watts, told
from arforge.runner.profiling.sensors import Reading, Sensors


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    return make_sysfs(tmp_path / "sys")


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_nvml(tmp_path_factory.mktemp("nvml")))


def test_a_jetson_tells_its_rails_clocks_zones_and_what_cools_it(jetson: Path) -> None:
    reading = Sensors(jetson).read()
    assert reading.milliwatts == {"VDD_IN": 9250.0, "VDD_CPU_GPU_CV": 3500.0, "VDD_SOC": pytest.approx(1495.2)}
    assert reading.watts() == 9.25  # of the input, not the sum
    assert reading.megahertz == {"17000000.gpu": 624.75, "cpu": 1120.0}
    assert reading.celsius == {"cpu-thermal": 51.25}
    assert reading.throttled == {"devfreq-17000000.gpu"}
    assert reading.events == {"oc2": 7, "oc3": 0}


def test_power_is_the_input_or_the_sum_of_the_rails(jetson: Path) -> None:
    write(jetson / MONITOR / "in1_label", "VDD_GPU_SOC")  # as on a module without one for all
    write(jetson / MONITOR / "in3_label", "NC")
    assert Sensors(jetson).read().watts() == 9.25 + 3.5
    (jetson / MONITOR / "curr2_input").unlink()
    assert Sensors(jetson).read().watts() == 9.25
    write(jetson / "bus/i2c/drivers/ina238/2-0044/hwmon/hwmon2/power1_input", "23500000")
    assert Sensors(jetson).read().watts() == 23.5


def test_sensors_that_go_away_are_left_out(jetson: Path) -> None:
    sensors = Sensors(jetson)
    write(jetson / MONITOR / "in1_input", "busy")
    (jetson / "class/devfreq/17000000.gpu/cur_freq").unlink()
    reading = sensors.read()
    assert set(reading.milliwatts) == {"VDD_CPU_GPU_CV", "VDD_SOC"}
    assert set(reading.megahertz) == {"cpu"}


def test_a_machine_without_sensors_tells_nothing(tmp_path: Path) -> None:
    reading = Sensors(tmp_path).read()
    assert reading == Reading()
    assert reading.watts() is None
    with Sampler(Sensors(tmp_path)) as sampler:
        pass
    assert told([sampler]) is mean_watts([sampler]) is None
    with Sampler(None) as sampler:
        pass
    assert told([sampler]) is None


def test_several_zones_of_one_type_are_told_apart(jetson: Path) -> None:
    write(jetson / "class/thermal/thermal_zone2/type", "cpu-thermal")
    write(jetson / "class/thermal/thermal_zone2/temp", "40000")
    assert Sensors(jetson).read().celsius == {"cpu-thermal": 51.25, "cpu-thermal 2": 40.0}


def test_a_gpu_is_asked_by_nvml(tmp_path: Path, nvml_library: str) -> None:
    nvml = Nvml.open(nvml_library)
    assert nvml is not None
    assert nvml.name == "Stand-in GPU"
    reading = Sensors(tmp_path, nvml).read()
    assert reading.milliwatts == {"gpu": 61500.0}
    assert reading.watts() == 61.5
    assert reading.megahertz == {"gpu": 1410.0, "gpu memory": 9501.0}
    assert reading.celsius == {"gpu": 64.0}
    assert reading.throttled == {"software power cap", "hardware thermal slowdown"}


def test_a_board_counts_before_its_gpu(jetson: Path, nvml_library: str) -> None:
    reading = Sensors(jetson, Nvml.open(nvml_library)).read()
    assert reading.watts() == 9.25
    assert reading.milliwatts["gpu"] == 61500.0


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlDeviceGetHandleByIndex_v2"])
def test_a_library_without_a_gpu_is_none(
    nvml_library: str, failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAILING", failing)
    assert Nvml.open(nvml_library) is None
    assert Nvml.open(str(tmp_path / "missing.so")) is None
    assert Nvml.open("libc.so.6") is None  # which has none of its functions


def test_a_gpu_that_does_not_tell_its_power_tells_the_rest(
    nvml_library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAILING", "nvmlDeviceGetPowerUsage")
    reading = Sensors(tmp_path, Nvml.open(nvml_library)).read()
    assert reading.milliwatts == {}
    assert reading.celsius == {"gpu": 64.0}


def test_what_is_told_is_spread_over_the_samples(jetson: Path) -> None:
    sensors = Sensors(jetson)
    samplers = []
    for amperes, count in ((1850, 9), (2050, 12)):
        with Sampler(sensors, period=60) as sampler:
            write(jetson / MONITOR / "curr1_input", str(amperes))
            write(jetson / "class/hwmon/hwmon3/oc2_event_cnt", str(count))
        samplers.append(sampler)
    write(jetson / "class/thermal/cooling_device2/cur_state", "0")
    with Sampler(sensors, period=60) as sampler:
        pass
    samplers.append(sampler)
    figures = told(samplers)
    assert figures is not None
    assert figures["samples"] == 3
    assert figures["milliwatts"]["VDD_IN"] == {
        "mean": pytest.approx(9916.67, abs=0.01),
        "least": 9250,
        "largest": 10250,
    }
    assert figures["throttled"] == {"devfreq-17000000.gpu": pytest.approx(2 / 3)}
    assert figures["events"] == {"oc2": 2 + 3, "oc3": 0}
    assert mean_watts(samplers) == pytest.approx(9.91667, abs=1e-5)


def test_it_looks_again_and_again(jetson: Path) -> None:
    sensors, looks = Sensors(jetson), 3
    with Sampler(sensors, period=0.001) as sampler:
        while len(sampler.readings) < looks:
            pass
    assert len(sampler.readings) > looks
