"""Previews in C++: Python's tokens and pixels, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpp_abi
import numpy as np
import pytest
from cpp_abi import STATUS, Failure

from arforge.runner import Runner
from arforge.runner.preview import Partial

LEFT = np.full((4, 9), -1)
LEFT[:, 0] = 7
TOP = np.full((6, 8), -1)
TOP[0] = 3
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bundle", {"schedule": "ntp"}),
    ("bundle", {"schedule": "zipar:2", "batch": 2}),
    ("bundle", {"schedule": "jacobi:4", "batch": 2}),
    ("bundle", {"schedule": "zipar:3,jacobi=5"}),
    ("bundle", {"schedule": "zipar:adaptive=1", "batch": 2}),
    ("bundle", {"schedule": "zipar:adaptive=1", "batch": 2}),
    ("arpg_bundle", {"schedule": "arpg:5"}),
    ("arpg_bundle", {"schedule": "arpg:3", "known": LEFT}),
    ("arpg_bundle", {"schedule": "arpg:4", "known": TOP, "batch": 2}),
]


def collected(runner: Any, show: Callable[[Any], Any], **asked: Any) -> list[Any]:
    seen: list[Any] = []
    runner.generate(**asked, preview=lambda partial: seen.append(show(partial)))
    return seen


def theirs_of(partial: Partial) -> tuple[Any, ...]:
    place = (partial.first, partial.count, partial.done, partial.steps, *partial.grid)
    return place, partial.tokens(), partial.pixels(), partial.pixels("grey")


def ours_of(partial: cpp_abi.Partial) -> tuple[Any, ...]:
    facts = partial.facts
    place = (facts.first, facts.images, facts.done, facts.steps, facts.rows, facts.columns)
    return place, partial.tokens(), partial.pixels(), partial.pixels("grey")


@pytest.mark.parametrize(("name", "asked"), CASES, ids=lambda case: str(case)[:40])
def test_previews_are_pythons_step_by_step(
    library: Any, request: pytest.FixtureRequest, name: str, asked: dict[str, Any]
) -> None:
    root: Path = request.getfixturevalue(name)
    asked = {"classes": [1, 2, 3], "seeds": [4, 5, 6], "guidance": 2.0, **asked}
    with Runner.open(root, threads=1) as theirs:
        expected = collected(theirs, theirs_of, **asked)
    ours = cpp_abi.Runner(library, root, threads=1)
    found = collected(ours, ours_of, **asked)
    ours.close()
    assert len(expected) > 3
    assert [one[0] for one in found] == [one[0] for one in expected]
    for one, other in zip(found, expected, strict=True):
        for array, reference in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(array, reference)
    assert any((tokens < 0).any() and (filled != grey).any() for _, tokens, filled, grey in expected)


def test_tokens_of_a_bundle_without_a_tokenizer(library: Any, par_bundle: Path) -> None:
    said: list[str] = []

    def show(partial: cpp_abi.Partial) -> np.ndarray:
        with pytest.raises(Failure) as refused:
            partial.pixels()
        assert refused.value.status == STATUS["request"]
        said.append(refused.value.message)
        return partial.tokens()

    ours = cpp_abi.Runner(library, par_bundle, threads=1)
    found = collected(ours, show, classes=[1, 2], schedule="par:4")
    with Runner.open(par_bundle, threads=1) as theirs:
        expected = collected(theirs, lambda partial: partial.tokens(), classes=[1, 2], schedule="par:4")
    ours.close()
    np.testing.assert_array_equal(found, expected)
    assert "no image tokenizer to show images with: export it with --tokenizer FILE" in said[0]


def test_wrong_uses_are_named(library: Any, bundle: Path) -> None:
    ours = cpp_abi.Runner(library, bundle, threads=1)
    failures: list[Failure] = []

    def show(partial: cpp_abi.Partial) -> None:
        for wrong in (
            lambda: partial.pixels("blurred"),
            lambda: ours.check(library.arforge_partial_tokens(cpp_abi.c_void_p(partial.handle), None)),
            lambda: ours.check(library.arforge_partial_read(None, None)),
        ):
            with pytest.raises(Failure) as refused:
                wrong()
            failures.append(refused.value)

    assert ours.generate([1], schedule="zipar:2", preview=show).tokens.shape == (1, 64)
    ours.close()
    said = [failure.message for failure in failures[:3]]
    assert "undecided cells as 7 are unknown: use one of ARFORGE_NEAREST, ARFORGE_GREY" in said[0]
    assert said[1:] == ["tokens is NULL", "partial is NULL"]
