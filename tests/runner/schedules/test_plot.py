from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arforge.runner import compile_schedule
from arforge.runner.schedules.plot import EMPTY, FRAMES, MARGIN, colour, decided_in, draw, save_animation, save_heat_map

SCHEDULE = compile_schedule("zipar:2", (4, 6))


def body(image: Image.Image) -> np.ndarray:
    """The colour of each cell's middle, [rows, columns, 3]."""
    width = image.width - 2 * MARGIN
    side = width // 6
    pixels = np.asarray(image.convert("RGB"))
    return pixels[MARGIN + side // 2 : MARGIN + 4 * side : side, MARGIN + side // 2 : MARGIN + 6 * side : side]


def test_each_cell_has_the_step_that_decides_it() -> None:
    found = decided_in(SCHEDULE)
    assert found.shape == (4, 6)
    np.testing.assert_array_equal(found[0], range(6))
    np.testing.assert_array_equal(found[1], range(6, 12))
    np.testing.assert_array_equal(found[2], range(8, 14))
    assert found.max() == len(SCHEDULE.steps) - 1


@pytest.mark.parametrize("until", [0, 7, len(SCHEDULE.steps)])
def test_cells_are_coloured_once_they_are_decided(until: int) -> None:
    steps = decided_in(SCHEDULE)
    colours = body(draw(SCHEDULE, until))
    expected = colour(steps / (len(SCHEDULE.steps) - 1))
    expected[steps >= until] = EMPTY
    np.testing.assert_array_equal(colours, expected)


def test_colours_run_from_the_first_step_to_the_last() -> None:
    ends = colour(np.array([-1.0, 0.0, 1.0, 2.0])).tolist()
    assert ends[0] == ends[1] == [40, 20, 90]
    assert ends[2] == ends[3] == [250, 230, 50]


def test_a_heat_map_is_a_png_of_the_whole_schedule(tmp_path: Path) -> None:
    save_heat_map(tmp_path / "plot.png", SCHEDULE)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(draw(SCHEDULE, len(SCHEDULE.steps))))


@pytest.mark.parametrize("side", [2, 16])
def test_an_animation_ends_with_the_whole_grid_and_stays_short(tmp_path: Path, side: int) -> None:
    schedule = compile_schedule("ntp", (side, side))
    save_animation(tmp_path / "plot.gif", schedule)
    with Image.open(tmp_path / "plot.gif") as image:
        assert image.format == "GIF"
        assert image.n_frames == min(FRAMES, side * side)
        assert image.info["loop"] == 0
        image.seek(image.n_frames - 1)
        assert image.info["duration"] == 1000
        last = np.asarray(image.convert("RGB")).astype(int)
    whole = np.asarray(draw(schedule, len(schedule.steps))).astype(int)
    assert np.abs(last - whole).mean() < 8  # a GIF has 256 colours


def test_a_grid_of_one_cell_is_drawn() -> None:
    image = draw(compile_schedule("ntp", (1, 1)), 1)
    assert image.width == image.height
