"""The windows of a line that calls feed, beside the line itself."""

from __future__ import annotations

import numpy as np
import pytest

from arforge.runner import compile_schedule
from arforge.runner.line import LineWindows, make_line
from arforge.runner.plan import column_of


@pytest.mark.parametrize("specification", ["ntp", "zipar:2", "zipar:1,first-row=windowed,holes=masked"])
@pytest.mark.parametrize("width", [1, 3, 6])
def test_windows_are_the_line_from_each_place_on(specification: str, width: int) -> None:
    schedule = compile_schedule(specification, (3, 4))
    line = make_line(schedule, column_of(schedule))
    count, first = len(line), schedule.zero_slots + 2  # of which two are a prompt's
    windows = LineWindows.of(line, width, slots=first + count + width, first_slot=first, across=4)
    for place in range(count):
        inputs = [min(place + output, count - 1) for output in range(width)]  # the last repeats
        assert windows.places[place].tolist() == inputs
        assert windows.columns[place].tolist() == line.columns[inputs].tolist()
        assert windows.positions[place].tolist() == line.positions[inputs].tolist()
        assert windows.guidance[place].tolist() == line.guidance[inputs].tolist()
        assert windows.has_source[place].tolist() == [line.sources[one] >= 0 for one in inputs]
        inside = [place + output < count for output in range(width)]
        assert windows.decides[place].tolist() == [
            own and line.targets[one] >= 0 for own, one in zip(inside, inputs, strict=True)
        ]
        for output, one in enumerate(inputs):
            seen = np.flatnonzero(windows.masks[place, output])
            expected = first + np.flatnonzero(line.sees(np.array(one)))
            assert seen.tolist() == [*range(line.holes[one]), *expected]
            decider = line.deciders[line.sources[one]] - place
            if line.sources[one] >= 0 and 0 <= decider < width:
                assert windows.outputs[place, output] == decider
    if specification == "ntp":
        assert windows.sees is None
    else:
        assert windows.sees is not None
        inner = windows.masks[:, :, first:]
        for place in range(count - width + 1):
            np.testing.assert_array_equal(windows.sees[place], inner[place][:, place : place + width])


@pytest.mark.parametrize(("width", "has_above"), [(1, False), (4, False), (5, True), (9, True)])
def test_a_window_of_more_than_a_row_has_cells_above_others(width: int, has_above: bool) -> None:
    schedule = compile_schedule("ntp", (3, 4))
    line = make_line(schedule, column_of(schedule))
    assert LineWindows.of(line, width, 30, 0, across=4).has_above == has_above
