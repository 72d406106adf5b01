"""What a figure was measured on: the processor, its memory bandwidth, memory used, and power where the device tells."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CPU_FACTS = Path("/proc/cpuinfo")
INA3221 = Path("/sys/bus/i2c/drivers/ina3221")
STREAMED = 1 << 29  # bytes: beyond any last-level cache
ROUNDS = 3


def device_name() -> str:
    """The processor by its name, and its cores."""
    lines = CPU_FACTS.read_text("utf-8").splitlines() if CPU_FACTS.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def streaming_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory together: the best of a few passes over half a GiB."""
    parts = np.array_split(np.ones(STREAMED // 4, dtype=np.int32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # vectorised, and without Python's lock
            best = max(best, STREAMED / (time.perf_counter() - start))
    return best


def peak_memory() -> int | None:
    """Bytes of the process's largest resident set so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def power() -> float | None:
    """Watts that the device draws now: an NVIDIA GPU's, or a Jetson board's; None where nothing tells."""
    gpu = nvml_power()
    return ina3221_power(INA3221) if gpu is None else gpu


def nvml_power() -> float | None:
    """Watts of the first NVIDIA GPU, by its management library."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    handle, milliwatts = ctypes.c_void_p(), ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return None
    failed = library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts))
    return None if failed else milliwatts.value / 1000


def ina3221_power(root: Path) -> float | None:
    """Watts of the rail that feeds a Jetson module: the first channel of its INA3221 monitor, in mV and mA."""
    for place in sorted(root.glob("*/hwmon/hwmon*")):
        try:
            return int((place / "in1_input").read_text()) * int((place / "curr1_input").read_text()) / 1e6
        except (OSError, ValueError):
            continue
    return None
