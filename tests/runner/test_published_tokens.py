"""The runner's greedy tokens are those of the published decoding, token by token."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from oracle import Decoder

from arforge.runner import Runner

CLASSES = [0, 3, 9]
GROUPED_CLASSES = [6, 1]


def test_next_token_equals_the_published_decoding(runner: Runner, decoder: Decoder) -> None:
    expected = oracle.next_token(decoder, CLASSES, guidance=2.0)
    found = runner.generate(CLASSES, schedule="ntp", guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("window", range(1, 8))
def test_zipar_equals_the_published_decoding(runner: Runner, decoder: Decoder, window: int) -> None:
    expected = oracle.zipar(decoder, CLASSES, window, guidance=2.0)
    found = runner.generate(CLASSES, schedule=f"zipar:{window}", guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("interval", [0, 1, 17, 62, 63])
def test_next_token_ends_guidance_where_the_published_decoding_does(
    runner: Runner, decoder: Decoder, interval: int
) -> None:
    expected = oracle.next_token(decoder, CLASSES, guidance=2.0, cfg_interval=interval)
    schedule = f"ntp,cfg-interval={interval}"
    found = runner.generate(CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("window", "interval"), [(2, 0), (4, 3), (4, 7), (4, 20), (6, 12), (7, 54)])
def test_zipar_ends_guidance_where_the_published_decoding_does(
    runner: Runner, decoder: Decoder, window: int, interval: int
) -> None:
    expected = oracle.zipar(decoder, CLASSES, window, guidance=2.0, cfg_interval=interval)
    schedule = f"zipar:{window},cfg-interval={interval}"
    found = runner.generate(CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


def test_grouped_heads_on_a_wide_grid_equal_the_published_next_token(
    grouped_runner: Runner, grouped_decoder: Decoder
) -> None:
    expected = oracle.next_token(grouped_decoder, GROUPED_CLASSES, guidance=2.0)
    found = grouped_runner.generate(GROUPED_CLASSES, schedule="ntp", guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("window", range(1, 6))
def test_grouped_heads_on_a_wide_grid_equal_the_published_zipar(
    grouped_runner: Runner, grouped_decoder: Decoder, window: int
) -> None:
    expected = oracle.zipar(grouped_decoder, GROUPED_CLASSES, window, guidance=2.0)
    schedule = f"zipar:{window}"
    found = grouped_runner.generate(GROUPED_CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens
    np.testing.assert_array_equal(found, expected)


def test_the_full_window_decodes_in_next_token_order(runner: Runner) -> None:
    full, plain = (
        runner.generate(CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens for schedule in ("zipar:8", "ntp")
    )
    np.testing.assert_array_equal(full, plain)


@pytest.mark.parametrize("option", ["seed=nearest", "holes=masked", "first-row=windowed", "cfg-interval=20"])
def test_each_option_changes_the_tokens_of_this_model(runner: Runner, option: str) -> None:
    """Else the comparisons above could not tell the published behaviour from the others."""
    changed, published = (
        runner.generate(CLASSES, schedule=schedule, guidance=2.0, greedy=True).tokens
        for schedule in (f"zipar:3,{option}", "zipar:3")
    )
    assert len(np.unique(published)) > 8
    assert (changed != published).any()
