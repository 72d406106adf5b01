"""Requests whose images get on at paces of their own, to the C++ and the Python runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure
from tiny import TEXT_CONFIG
from tiny_ids import prompt_of

from arforge.runner import Cancelled, Runner

BUNDLES = {"classes": "bundle", "features": "text_bundle", "ids": "ids_bundle"}
SEEDS = [5, 1, 2**64 - 1, 2, 6, 5]
SETTINGS: list[dict[str, Any]] = [
    {"guidance": 2.5, "top_k": 12},
    {"guidance": [1.0, 3.0, 1.0, 2.0, 5.0, 3.0], "temperature": [1.0, 0.0, 0.7, 1.3, 1.0, 0.0], "batch": 4},
]


def asked(kind: str) -> dict[str, Any]:
    """Six images, of prompts of unequal lengths."""
    if kind == "classes":
        return {"classes": list(range(6)), "seeds": SEEDS}
    if kind == "ids":
        return {"ids": [prompt_of(6 + 3 * index, seed=index) for index in range(6)], "seeds": SEEDS}
    random = np.random.default_rng(0)
    features = [0.5 * random.standard_normal((1 + 4 * n, TEXT_CONFIG.caption_dim), np.float32) for n in range(6)]
    return {"features": features, "seeds": SEEDS}


def compare(ours: cpp_abi.Runner, theirs: Runner, **settings: Any) -> cpp_abi.Result:
    """What C++ gives, which is what Python does, to the calls of each image."""
    expected, found = theirs.generate(**settings), ours.generate(**settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.passes, expected.passes)
    assert found.steps == expected.steps
    return found


def check_progress_and_cancelling(ours: cpp_abi.Runner, theirs: Runner, **settings: Any) -> None:
    """Progress is Python's, and so is what is said of a request that is cancelled, which leaves nothing behind."""
    expected = compare(ours, theirs, **settings)
    seen: list[tuple[int, int]] = []
    expected_seen: list[tuple[int, int]] = []
    ours.generate(**settings, progress=lambda *counts: seen.append(counts))
    theirs.generate(**settings, progress=lambda *counts: expected_seen.append(counts))
    assert seen == expected_seen
    assert seen[-1] == (128, 128)
    with pytest.raises(Failure) as refused:
        ours.generate(**settings, progress=lambda done, _: done > 20)
    assert refused.value.status == STATUS["cancelled"]

    class AfterSome:
        def is_set(self) -> bool:
            return bool(counted) and counted[-1] > 20

    counted: list[int] = []
    with pytest.raises(Cancelled) as cancelled:
        theirs.generate(**settings, progress=lambda done, _: counted.append(done), cancel=AfterSome())
    assert refused.value.message == str(cancelled.value)
    np.testing.assert_array_equal(ours.generate(**settings).tokens, expected.tokens)


def check_weights_that_are_no_numbers(library: Any, bundle: Path, schedule: str) -> None:
    """Each request of a bundle whose weights become NaN is refused alike; the bundle is changed."""
    weights = bundle / "graphs/fp32/weights/model.weights"
    size = weights.stat().st_size
    weights.unlink()
    weights.write_bytes(np.full(size // 4, np.nan, np.float32).tobytes().ljust(size, b"\0"))
    ours = cpp_abi.Runner(library, bundle, threads=1)
    for _ in range(2):
        with pytest.raises(Failure, match=r"step 0 of 64, image 0: the logits are non-finite") as refused:
            ours.generate([1, 2], schedule=schedule)
        assert refused.value.status == STATUS["numerics"]
    ours.close()
