"""Which widths steps are padded to, chosen by what a step of each costs on this machine.

Where a wider step takes less time than a narrower one, as on kernels with tiles of many rows, the narrower is not worth
having: its steps are padded to the wider. Everything else runs as it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from arforge.engines.profiles import used
from arforge.runner.backends.engine import Engine
from arforge.runner.bundle import Bundle
from arforge.runner.step_graph import guided_rows

ROUNDS = 7
GAIN = 0.03  # of a step's time: what padding must save, more than one measurement differs from the next


def stored_widths(bundle: Bundle) -> list[int]:
    """The widths that the bundle's schedules use, in order."""
    return sorted(used([bundle.schedule(name) for name in bundle.specifications]))


def measure(engine: Engine, bundle: Bundle, widths: Sequence[int]) -> dict[int, float]:
    """Median seconds of a step of each width for one image with guidance, half of it decided.

    Of a model with queries, a step that asks for as many cells as it is given tokens.
    """
    return {width: statistics.median(seconds) for width, seconds in take_turns([engine], bundle, widths)[0].items()}


def take_turns(engines: Sequence[Engine], bundle: Bundle, widths: Sequence[int]) -> list[dict[int, list[float]]]:
    """Seconds of such steps of each engine, round after round, so that what else the machine does falls on all."""
    slot, most = bundle.model.cells // 2, max(widths)
    for engine in engines:
        rows = guided_rows(1, guided=True)
        engine.prepare(images=1, rows=rows, slots=slot + most, zero_slots=slot + most, lockstep=most)
    taken: list[dict[int, list[float]]] = [{width: [] for width in widths} for _ in engines]
    for turn in range(1 + ROUNDS):
        for width in widths:
            for engine, seconds in zip(engines, taken, strict=True):
                one = timed_step(engine, slot, width, width if bundle.model.queries else 0)
                if turn:  # the first makes buffers
                    seconds[width].append(one)
    return taken


def timed_step(engine: Engine, slot: int, width: int, queries: int) -> float:
    """Seconds of a step whose tokens all see each other and `slot` slots before them."""
    buffers = engine.buffers(width, queries)
    buffers.tokens[:], buffers.positions[:], buffers.write_index[:] = 0, 1, slot
    buffers.mask[:] = False
    buffers.mask[..., : slot + width] = True
    start = time.perf_counter()
    engine.run(width, queries)
    return time.perf_counter() - start


def choose(seconds: Mapping[int, float]) -> tuple[int, ...] | None:
    """The widths to run, of those measured; None where each is best run as it is."""
    kept: list[int] = []
    for width in sorted(seconds, reverse=True):
        if not kept or seconds[width] * (1 - GAIN) < min(seconds[wider] for wider in kept):
            kept.append(width)
    return None if len(kept) == len(seconds) else tuple(reversed(kept))
