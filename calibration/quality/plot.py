"""A picture of quality against steps and against time, one point a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arforge.runner.output import write_whole
from arforge.runner.profiling.page import require_matplotlib

AXIS = "Fréchet distance of EfficientNet-Lite0 features"
LOGARITHMIC = 8  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Point:
    label: str
    group: str  # one colour each; "" for no legend
    steps: float
    milliseconds: float  # an image
    distance: float


def save_plot(path: Path, points: Sequence[Point], floor: float | None, caption: str) -> None:
    """Write a PNG of two panels; `floor`: the distance of real images, as a line; `caption`: device and settings.

    Raises RequestError if matplotlib is not installed or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(caption, fontsize=9)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = ((left, "steps an image", "steps"), (right, "milliseconds an image", "milliseconds"))
    groups = list(dict.fromkeys(point.group for point in points))
    for axes, title, field in panels:
        for number, group in enumerate(groups):
            chosen = sorted((p for p in points if p.group == group), key=lambda p: (p.steps, p.distance))
            across = [getattr(point, field) for point in chosen]
            axes.plot(across, [p.distance for p in chosen], "o", color=f"C{number}", markersize=5, label=group or None)
            for side, (place, point) in enumerate(zip(across, chosen, strict=True)):
                right_side = side % 2 == 0  # in turn, so that neighbours stay readable
                axes.annotate(
                    point.label,
                    (place, point.distance),
                    xytext=(6 if right_side else -6, 4 if right_side else -9),
                    textcoords="offset points",
                    ha="left" if right_side else "right",
                    fontsize=7,
                )
        if floor is not None:
            axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label="real images")
        axes.set_xlabel(title)
        axes.grid(visible=True, alpha=0.3)
        axes.margins(x=0.15, y=0.1)
        if spread([getattr(point, field) for point in points]) > LOGARITHMIC:
            axes.set_xscale("log")
        if spread([*(point.distance for point in points), *([] if floor is None else [floor])]) > LOGARITHMIC:
            axes.set_yscale("log")
    left.set_ylabel(AXIS)
    if left.get_legend_handles_labels()[1]:
        left.legend(fontsize=8)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def spread(values: Sequence[float]) -> float:
    """Largest over smallest; 1 where that says nothing."""
    return max(values) / min(values) if min(values) > 0 else 1.0
