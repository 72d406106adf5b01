"""Power, clocks, temperatures and throttling as the machine tells them: sysfs, of Jetsons above all, and NVML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arforge.runner.profiling.nvml import Nvml

SYSFS = Path("/sys")
INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")  # rails that feed all others, in order
GPU = "gpu"  # that NVML knows
GPU_CLOCKS = ("gpu", "ga10b", "gv11b", "gp10b", "bwmgr")  # in names of devfreq's devices; the last is the memory's
UNCONNECTED = "NC"


@dataclass(frozen=True)
class Reading:
    """One look at all sensors, each by its name."""

    milliwatts: dict[str, float] = field(default_factory=dict)
    megahertz: dict[str, float] = field(default_factory=dict)
    celsius: dict[str, float] = field(default_factory=dict)
    throttled: frozenset[str] = frozenset()  # what holds clocks down now
    events: dict[str, int] = field(default_factory=dict)  # counted since the machine was started

    def watts(self) -> float | None:
        """Of the rail that feeds all others; else of all rails, or of the GPU; None where nothing tells."""
        for name in INPUTS:
            if name in self.milliwatts:
                return self.milliwatts[name] / 1000
        rails = [drawn for name, drawn in self.milliwatts.items() if name != GPU]
        if rails:
            return sum(rails) / 1000
        return self.milliwatts[GPU] / 1000 if GPU in self.milliwatts else None


class Sensors:
    """Finds what there is to read once. `sysfs`: another place than /sys, as a container may see its host's."""

    def __init__(self, sysfs: Path = SYSFS, nvml: Nvml | None = None) -> None:
        self._nvml = nvml
        self._rails = dict(rails(sysfs))
        inputs = sorted(sysfs.glob("bus/i2c/drivers/ina238/*/hwmon/hwmon*/power1_input"))  # of Thor, in microwatts
        self._powers = {"VIN": inputs[0]} if inputs else {}
        self._clocks = {
            path.parent.name: path
            for path in sorted(sysfs.glob("class/devfreq/*/cur_freq"))
            if any(name in path.parent.name for name in GPU_CLOCKS)
        }
        self._cores = sorted(sysfs.glob("devices/system/cpu/cpufreq/policy*/scaling_cur_freq"))
        self._zones = dict(named(sysfs, "class/thermal/thermal_zone*/temp"))
        cooling = named(sysfs, "class/thermal/cooling_device*/cur_state")
        self._cooling = {name: path for name, path in cooling if "fan" not in name.lower()}  # which cools, unfelt
        events = sorted(sysfs.glob("class/hwmon/hwmon*/oc*_event_cnt"))
        self._events = {path.name.removesuffix("_event_cnt"): path for path in events}

    @classmethod
    def found(cls, sysfs: Path = SYSFS) -> Sensors:
        """Those of this machine."""
        return cls(sysfs, Nvml.open())

    def read(self) -> Reading:
        pairs = {name: [number(path) for path in places] for name, places in self._rails.items()}
        drawn = {
            name: millivolts * milliamperes / 1000
            for name, (millivolts, milliamperes) in pairs.items()
            if millivolts is not None and milliamperes is not None
        }
        drawn |= numbers(self._powers, 1000)
        clocks, celsius = numbers(self._clocks, 1e6), numbers(self._zones, 1000)
        cores = [told for told in map(number, self._cores) if told is not None]
        if cores:
            clocks["cpu"] = sum(cores) / len(cores) / 1000
        cooled = {name for name, state in numbers(self._cooling, 1).items() if state > 0}
        events = {name: int(count) for name, count in numbers(self._events, 1).items()}
        if self._nvml is not None:
            power, heat = self._nvml.milliwatts(), self._nvml.celsius()
            drawn |= {} if power is None else {GPU: power}
            celsius |= {} if heat is None else {GPU: heat}
            clocks |= self._nvml.megahertz()
            cooled |= self._nvml.reasons()
        return Reading(drawn, clocks, celsius, frozenset(cooled), events)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None


def rails(sysfs: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Name, and files of mV and mA, of every channel of the INA3221 monitors that is connected."""
    for volts in sorted(sysfs.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_input")):
        channel = volts.name[2]
        amperes = volts.with_name(f"curr{channel}_input")
        name = word(volts.with_name(f"in{channel}_label")) or f"{volts.parents[2].name} channel {channel}"
        if name != UNCONNECTED and amperes.exists():
            yield name, (volts, amperes)


def named(sysfs: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Files by what the `type` beside each says; of several of one type all but the first get a number."""
    seen: dict[str, int] = {}
    for path in sorted(sysfs.glob(pattern)):
        name = word(path.with_name("type")) or path.parent.name
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} {seen[name]}", path


def word(path: Path) -> str:
    """A file's one line; empty where it cannot be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def number(path: Path) -> float | None:
    """A file's number; None where it cannot be read now, as with what is switched off."""
    try:
        return float(word(path))
    except ValueError:
        return None


def numbers(paths: dict[str, Path], scale: float) -> dict[str, float]:
    """The numbers, divided by `scale`, of the files that can be read now."""
    told = {name: number(path) for name, path in paths.items()}
    return {name: value / scale for name, value in told.items() if value is not None}
