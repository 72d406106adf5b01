"""What an image costs beside its kernels is what `docs/engines.md` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import Opened
from launch_counts import BUNDLES, COUNTS


@pytest.fixture(scope="session", params=BUNDLES)
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def engines(request: pytest.FixtureRequest, schedule: str, build_copy: Callable[..., Path]) -> list[Path]:
    """Without the graphs between two calls, and with them."""
    bundle = request.getfixturevalue(BUNDLES[schedule])
    return [build_copy(bundle, schedules=[schedule], loop=loop) for loop in (False, True)]


def test_an_image_takes_so_many_launches_waits_and_bytes(
    engines: list[Path], schedule: str, open_fake: Callable[..., Opened]
) -> None:
    tokens, counts = [], []
    for path, look_every in ((engines[0], None), (engines[1], None), (engines[1], 0)):
        runner, _, gpu = open_fake(path, look_every=look_every)
        runner.bundle = replace(runner.bundle, image_tokenizer=None)  # whose decoder would count
        runner.generate([1], [3], schedule, guidance=2.0)  # which is captured meanwhile
        before = np.array([gpu.launches, gpu.waits, gpu.sent, gpu.fetched, gpu.allocations])
        tokens.append(runner.generate([7], [5], schedule, guidance=2.0).tokens.tolist())
        after = np.array([gpu.launches, gpu.waits, gpu.sent, gpu.fetched, gpu.allocations])
        *found, allocations = (after - before).tolist()
        assert allocations == 0
        counts.append(tuple(found))
    assert tokens[1:] == tokens[:1] * 2
    assert counts == COUNTS[schedule]
