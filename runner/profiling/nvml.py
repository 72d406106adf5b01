"""What NVIDIA's management library tells of a GPU: power, clocks, temperature, and why clocks are held down."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Self

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
CLOCKS = {"gpu": 0, "gpu sm": 1, "gpu memory": 2}  # by the library's numbers
REASONS = {
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""Of clocks that are lower than they could be; an idle GPU (0x1) is left out."""
NAME_BYTES = 96


class Nvml:
    """The first GPU. Whatever it does not tell is None, or missing."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def open(cls, library: str = LIBRARY) -> Self | None:
        """None where there is no such library, or it finds no GPU."""
        try:
            loaded = ctypes.CDLL(library)
            handle = ctypes.c_void_p()
            if loaded.nvmlInit_v2() or loaded.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
                return None
        except (OSError, AttributeError):  # not there, or another library of that name
            return None
        return cls(loaded, handle)

    @property
    def name(self) -> str | None:
        text = ctypes.create_string_buffer(NAME_BYTES)
        failed = self._call("nvmlDeviceGetName", text, NAME_BYTES)
        return None if failed else text.value.decode("utf-8", "replace")

    def milliwatts(self) -> float | None:
        return self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint())

    def celsius(self) -> float | None:
        return self._number("nvmlDeviceGetTemperature", ctypes.c_uint(), 0)

    def megahertz(self) -> dict[str, float]:
        asked = {name: self._number("nvmlDeviceGetClockInfo", ctypes.c_uint(), kind) for name, kind in CLOCKS.items()}
        return {name: told for name, told in asked.items() if told is not None}

    def reasons(self) -> frozenset[str]:
        """Why its clocks are lower than they could be."""
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return frozenset(name for bit, name in REASONS.items() if bits is not None and int(bits) & bit)

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _number(self, function: str, place: Any, *given: int) -> float | None:
        return None if self._call(function, *given, ctypes.byref(place)) else float(place.value)

    def _call(self, function: str, *arguments: Any) -> int:
        """The library's status; one of its own where it lacks the function."""
        try:
            return int(getattr(self._library, function)(self._handle, *arguments))
        except AttributeError:
            return -1
