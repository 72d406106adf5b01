"""Static schedules without the host between steps: the tokens are the host's, in few launches, waits and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import Opened
from own_paces import asked

SCHEDULES = {
    "classes": ["ntp", "zipar:4", "zipar:2,holes=masked"],
    "noise": ["ntp", "zipar:4"],
    "par": ["par:4"],
    "arpg": ["arpg:5", "arpg:3"],
    "features": ["ntp", "zipar:4"],
    "ids": ["ntp", "zipar:4"],
}
BUNDLES = {"classes": "bundle", "features": "text_bundle"}
RUNNERS = {"classes": "runner", "features": "text_runner"}


@pytest.fixture(scope="session", params=SCHEDULES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, family: str, build_copy: Callable[..., Path]) -> Path:
    """An engine of one family's schedules, for one image and three."""
    bundle = request.getfixturevalue(BUNDLES.get(family, f"{family}_bundle"))
    return build_copy(bundle, schedules=SCHEDULES[family], images=[1, 3], filters=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tokens_are_the_cpu_engines(
    request: pytest.FixtureRequest, built: Path, family: str, open_fake: Callable[..., Opened], count: int
) -> None:
    whole = request.getfixturevalue(RUNNERS.get(family, f"{family}_runner"))
    mine, engine, gpu = open_fake(built)
    wishes = asked(family if family in ("features", "ids") else "classes")
    wishes = {name: value[:count] if isinstance(value, list) else value for name, value in wishes.items()}
    for schedule in SCHEDULES[family]:
        expected = whole.generate(**wishes, schedule=schedule)
        before = gpu.launches
        found = mine.generate(**wishes, schedule=schedule, images=False)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.passes, expected.passes)
        assert engine._tables._made
        print(family, schedule, engine._identity if False else "", gpu.launches - before)
