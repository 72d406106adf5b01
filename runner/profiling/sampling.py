"""Looks at the sensors while a generation runs, on a thread of its own, and says what they told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from arforge.runner.profiling.sensors import Reading, Sensors

PERIOD = 0.1  # seconds; a look takes about a millisecond


class Sampler:
    """Between `with` and its end it looks at the sensors every so often, and once at the end. None: at nothing."""

    def __init__(self, sensors: Sensors | None, period: float = PERIOD) -> None:
        self._sensors, self._period = sensors, period
        self.readings: list[Reading] = []
        self.events: dict[str, int] = {}  # counted in between

    def __enter__(self) -> Self:
        self._over = threading.Event()
        if self._sensors is not None:
            before = self._sensors.read().events
            self._thread = threading.Thread(target=self._look, args=(self._sensors, before), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        if self._sensors is not None:
            self._thread.join()

    def _look(self, sensors: Sensors, before: dict[str, int]) -> None:
        while not self._over.wait(self._period):
            self.readings.append(sensors.read())
        self.readings.append(sensors.read())  # however short it was
        after = self.readings[-1].events
        self.events = {name: count - before.get(name, count) for name, count in after.items()}


def told(samplers: Sequence[Sampler]) -> dict[str, Any] | None:
    """All that the sensors told in some generations, as a profile's JSON has it; None where there are none."""
    readings = [reading for sampler in samplers for reading in sampler.readings]
    if not any(r.milliwatts or r.megahertz or r.celsius or r.throttled or r.events for r in readings):
        return None
    reasons = sorted(frozenset().union(*(reading.throttled for reading in readings)))
    counted = sorted({name for sampler in samplers for name in sampler.events})
    return {
        "samples": len(readings),
        "milliwatts": spread(readings, lambda reading: reading.milliwatts),
        "megahertz": spread(readings, lambda reading: reading.megahertz),
        "celsius": spread(readings, lambda reading: reading.celsius),
        "throttled": {name: sum(name in r.throttled for r in readings) / len(readings) for name in reasons},
        "events": {name: sum(sampler.events.get(name, 0) for sampler in samplers) for name in counted},
    }


def mean_watts(samplers: Sequence[Sampler]) -> float | None:
    """Over all looks; None where nothing tells."""
    watts = [reading.watts() for sampler in samplers for reading in sampler.readings]
    drawn = [one for one in watts if one is not None]
    return sum(drawn) / len(drawn) if drawn else None


def spread(readings: Sequence[Reading], of: Callable[[Reading], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, least and largest of each sensor of a kind."""
    values: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in of(reading).items():
            values.setdefault(name, []).append(value)
    return {
        name: {"mean": sum(some) / len(some), "least": min(some), "largest": max(some)}
        for name, some in sorted(values.items())
    }
