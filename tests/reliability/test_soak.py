"""A short run of `bench/soak.py`, which is for hours: ARFORGE_SOAK_SECONDS sets how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"
SECONDS = os.environ.get("ARFORGE_SOAK_SECONDS", "120")


def soak(*arguments: str | Path) -> tuple[int, dict[str, object]]:
    done = subprocess.run([sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory and handles from /proc")
def test_nothing_goes_wrong_or_grows_under_load(bundle: Path, arpg_bundle: Path, text_bundle: Path) -> None:
    code, report = soak(bundle, arpg_bundle, text_bundle, "--seconds", SECONDS)
    counts, latencies = report["counts"], report["milliseconds"]
    assert report["problems"] == []
    assert code == 0
    assert isinstance(counts, dict)
    for kind in ("answered", "cancelled", "refused", "failed in the caller"):
        assert counts[kind] > 0
    assert isinstance(latencies, dict)
    assert all(times["p50"] <= times["p99"] <= times["most"] for times in latencies.values())


@pytest.fixture(scope="module")
def module() -> Any:
    spec = spec_from_file_location("soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_wrong_token_and_a_wrong_pixel_are_noticed(module: Any) -> None:
    setting = ("ntp", 1.0, False)
    known = SimpleNamespace(images={(setting, 0, 5): (np.arange(4), np.zeros((2, 2, 3), np.uint8))})
    tester = module.Soak([], 0)

    def result(token: int, pixel: int) -> SimpleNamespace:
        return SimpleNamespace(tokens=np.array([[0, 1, 2, token]]), images=np.full((1, 2, 2, 3), pixel, np.uint8))

    tester.compare(known, setting, [0], [5], result(3, 0))
    for wrong, what in ((result(4, 0), "tokens"), (result(3, 1), "pixels")):
        with pytest.raises(AssertionError, match=f"wrong {what}: .*subject 0, seed 5, image 0"):
            tester.compare(known, setting, [0], [5], wrong)


def test_memory_that_grows_is_noticed_and_noise_is_not(module: Any) -> None:
    rng = np.random.default_rng(0)
    noise = (10 << 20) * rng.random(90)
    assert not list(module.grown([int((300 << 20) + extra) for extra in noise]))
    leak = [int((300 << 20) + (2 << 20) * index + extra) for index, extra in enumerate(noise)]
    assert "memory grew from" in next(module.grown(leak))
