"""How far next-token decoding runs ahead on drafts where a request leaves that to the engine (`jacobi:auto`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arforge.runner.schedules.specification import leaves_window_open, with_window

PAYS = 0.97  # of next-token's time: what two measurements of the same thing differ by is no gain


@dataclass(frozen=True)
class MeasuredWindow:
    """What so many inputs of a call took, of which an engine's identity tells."""

    inputs: int
    calls: float  # until all images were done
    time: float  # relative to next-token decoding's of as many images
    images: int = 1  # that were decoded together

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "inputs": self.inputs,
            "calls": round(self.calls, 2),
            "time": round(self.time, 3),
        }


def measured_windows(identity: Mapping[str, Any], *, exact: bool) -> tuple[MeasuredWindow, ...]:
    """Those of an engine's identity that it is wide enough for; none unless its wide steps are `exact`, bit for bit.

    Engines that were built before say nothing of batches: one image.
    """
    if not exact:
        return ()
    widest = max(identity["widths"] or [float("inf")])
    found = (MeasuredWindow(**one) for one in identity.get("jacobi", ()))
    return tuple(one for one in found if one.inputs <= widest)


def best_window(measured: Sequence[MeasuredWindow], images: int) -> int:
    """Inputs of a call that are the quickest for a batch; 1 where none pays or so large a batch was not measured.

    What was measured with the least number of images that is not smaller counts: the more rows, the less running ahead
    pays.
    """
    fitting = [one for one in measured if one.images >= images]
    if not fitting:
        return 1
    best = min(fitting, key=lambda one: (one.images, one.time))
    return best.inputs if best.time < PAYS else 1


def settled(schedule: str, measured: Sequence[MeasuredWindow], images: int) -> str:
    """The specification that a batch is decoded by: as it is given, but for how far it runs ahead."""
    return with_window(schedule, best_window(measured, images)) if leaves_window_open(schedule) else schedule
