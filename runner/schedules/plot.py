"""Pictures of a schedule: a heat map of when each cell is decided, and an animation of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arforge.runner.output import write_whole
from arforge.runner.schedules.schedule import Schedule

if TYPE_CHECKING:
    from PIL import Image

PIXELS = 480  # of the longer side of the map
MARGIN = 48
FRAMES = 120
FRAME_MILLISECONDS = 50
# Dark blue to yellow, even in lightness.
PALETTE = np.array([(40, 20, 90), (60, 80, 150), (40, 140, 140), (110, 195, 90), (250, 230, 50)], dtype=float)
EMPTY = (235, 235, 235)


def decided_in(schedule: Schedule) -> NDArray[np.int64]:
    """The step in which each cell is decided, int64 [rows, columns]."""
    steps = np.empty(schedule.cells, dtype=np.int64)
    for index, step in enumerate(schedule.steps):
        steps[[target.cell for target in step.targets]] = index
    return steps.reshape(schedule.grid)


def save_heat_map(path: Path, schedule: Schedule) -> None:
    image = draw(schedule, len(schedule.steps))
    write_whole(path, lambda file: image.save(file, format="PNG"))


def save_animation(path: Path, schedule: Schedule) -> None:
    """An endless GIF of at most FRAMES frames; the last one stays for a second."""
    total = len(schedule.steps)
    marks = np.unique(np.linspace(1, total, min(total, FRAMES)).astype(int))
    frames = [draw(schedule, int(mark)) for mark in marks]
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [1000]
    first, rest = frames[0], frames[1:]
    write_whole(
        path,
        lambda file: first.save(file, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0),
    )


def draw(schedule: Schedule, until: int) -> Image.Image:
    """The cells decided in the first `until` steps, coloured by step, with a title and a scale."""
    from PIL import Image, ImageDraw

    steps, total = decided_in(schedule), len(schedule.steps)
    colours = colour(steps / max(1, total - 1))
    colours[steps >= until] = EMPTY
    rows, columns = schedule.grid
    side = max(2, PIXELS // max(rows, columns))
    body = colours.repeat(side, axis=0).repeat(side, axis=1)
    if side >= 8:
        body[::side], body[:, ::side] = 255, 255
    page = Image.new("RGB", (columns * side + 2 * MARGIN, rows * side + 2 * MARGIN), "white")
    page.paste(Image.fromarray(body), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(page)
    title = f"{schedule.specification}   {rows}x{columns}   step {until} of {total}"
    pen.text((MARGIN, MARGIN // 3), title, fill="black", font_size=16)
    scale = colour(np.linspace(0, 1, columns * side))[None].repeat(MARGIN // 4, axis=0)
    top = MARGIN + rows * side + MARGIN // 4
    page.paste(Image.fromarray(scale), (MARGIN, top))
    pen.text((4, top), "step 0", fill="black", font_size=12)
    pen.text((MARGIN + columns * side + 4, top), str(total - 1), fill="black", font_size=12)
    return page


def colour(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours, uint8 [..., 3], of numbers in [0, 1]."""
    place = np.clip(share, 0, 1) * (len(PALETTE) - 1)
    channels = [np.interp(place, np.arange(len(PALETTE)), PALETTE[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
