"""A folder like a Jetson's /sys, and NVIDIA's management library as a stand-in that is compiled here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MONITOR = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
RAILS = {"VDD_IN": (5000, 1850), "VDD_CPU_GPU_CV": (5000, 700), "VDD_SOC": (4984, 300)}  # mV, mA
FILES = {
    "class/devfreq/17000000.gpu/cur_freq": "624750000",
    "class/devfreq/15340000.vic/cur_freq": "115200000",
    "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400",
    "devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600",
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "51250",
    "class/thermal/thermal_zone1/type": "cv0-thermal",
    "class/thermal/thermal_zone1/temp": "",  # switched off: the kernel gives no number
    "class/thermal/cooling_device0/type": "pwm-fan",
    "class/thermal/cooling_device0/cur_state": "2",
    "class/thermal/cooling_device1/type": "cpufreq-cpu0",
    "class/thermal/cooling_device1/cur_state": "0",
    "class/thermal/cooling_device2/type": "devfreq-17000000.gpu",
    "class/thermal/cooling_device2/cur_state": "3",
    "class/hwmon/hwmon3/oc2_event_cnt": "7",
    "class/hwmon/hwmon3/oc3_event_cnt": "0",
}
SOURCE = r"""
#include <stdlib.h>
#include <string.h>
static int fails(const char *name) { const char *set = getenv("FAILING"); return set && !strcmp(set, name) ? 999 : 0; }
int nvmlInit_v2(void) { return fails("nvmlInit_v2"); }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)0x5eed;
  return index ? 2 : fails("nvmlDeviceGetHandleByIndex_v2");
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
  strncpy(name, "Stand-in GPU", size);
  return device != (void *)0x5eed;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
  *milliwatts = 61500;
  return device != (void *)0x5eed ? 2 : fails("nvmlDeviceGetPowerUsage");
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  *celsius = 64;
  return device != (void *)0x5eed || sensor != 0;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *megahertz) {
  const unsigned clocks[] = {1410, 1400, 9501};
  if (device != (void *)0x5eed || kind < 0 || kind > 2) return 2;
  *megahertz = clocks[kind];
  return kind == 1 ? 3 : 0; /* the SM clock is not told */
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
  *reasons = 0x1 | 0x4 | 0x40;
  return device != (void *)0x5eed;
}
"""


def make_sysfs(root: Path) -> Path:
    """Of an Orin Nano under load: a GPU that is cooled by a lower clock, a fan, a zone that is off."""
    for channel, (name, (millivolts, milliamperes)) in enumerate(RAILS.items(), 1):
        write(root / MONITOR / f"in{channel}_label", name)
        write(root / MONITOR / f"in{channel}_input", str(millivolts))
        write(root / MONITOR / f"curr{channel}_input", str(milliamperes))
    for path, content in FILES.items():
        write(root / path, content)
    return root


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def make_nvml(folder: Path) -> Path:
    """The library, under its own name, of a GPU of 61.5 W that is too hot. $FAILING names a function that fails."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler: none of cc, gcc, clang is on the path")
    library = folder / "libnvidia-ml.so.1"
    source = folder / "nvml.c"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
