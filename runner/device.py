"""What a figure was measured on: the processor, its memory bandwidth, memory used. Power: `profiling/sensors.py`."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from arforge.runner.errors import EngineError

CPU_FACTS = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")
GROUPS = Path("/proc/self/cgroup")  # lines of "number:controllers:path"; no controllers in version 2
GROUP_FILES = Path("/sys/fs/cgroup")
THREADS_A_PROCESSOR = 4  # at most; more only wait for each other
LEAST_LIMIT = 64  # threads that every machine bears
STREAMED = 1 << 29  # bytes: beyond any last-level cache
ROUNDS = 3


def device_name() -> str:
    """The processor by its name, and its cores."""
    lines = CPU_FACTS.read_text("utf-8").splitlines() if CPU_FACTS.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def available_cores() -> int:
    """The cores that this process may use: of its affinity mask, as far as its container's CPU quota goes.

    Two threads of one core count once.
    """
    allowed = machine_cores() if sys.platform != "linux" else physical_cores(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(quota) for quota in cpu_quotas())]))


def check_threads(threads: int | None) -> int | None:
    """`threads` as given. Raises EngineError unless it is None or a number of threads that this machine bears."""
    if threads is None:
        return None
    most = max(LEAST_LIMIT, THREADS_A_PROCESSOR * (os.cpu_count() or 1))
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise EngineError(f"{threads!r} threads: use a whole number, or leave it out for one an available core")
    if not 1 <= threads <= most:
        raise EngineError(
            f"{threads} threads: use at least 1, and here at most {most}, or leave it out for one an available core"
        )
    return threads


def machine_cores() -> int:
    """All cores of the machine."""
    return physical_cores(range(os.cpu_count() or 1))


def physical_cores(processors: Iterable[int]) -> int:
    """The cores that these logical processors belong to; each is its own where the system does not tell."""
    names = {}
    for number in processors:
        try:
            names[number] = (TOPOLOGY / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            names[number] = str(number)
    return len(set(names.values()))


def cpu_quotas() -> Iterator[float]:
    """Processors' worth of time that each control group around this process allows, of either version."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [GROUP_FILES / name for name in dict.fromkeys((controllers, "cpu"))] if controllers else [GROUP_FILES]
        # a container may see the path of the host above its own root, so the way up to the root is looked at
        place = PurePosixPath(path.lstrip("/"))
        for folder in (mount / part for mount in mounts for part in (place, *place.parents)):
            quota = cpu_quota(folder)
            if quota is not None:
                yield quota


def cpu_quota(group: Path) -> float | None:
    """Processors' worth of time that one control group allows; None where it sets no limit."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def streaming_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory together: the best of a few passes over half a GiB."""
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
