"""From the demo checkpoint to images, on a plain CPU: export, build, generate with each schedule, compare.

python examples/fashion/demo.py [--output FOLDER]
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click
import numpy as np
from common import arforge

from arforge.runner import Runner
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.runner.canvas import UNKNOWN
from arforge.runner.images import save_png

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
SCHEDULES = {"llamagen": ("ntp", "zipar:4", "zipar:2"), "par": ("par:4",), "arpg": ("arpg:16", "arpg:8")}
GUIDANCE = {"llamagen": 2.0, "par": 2.0, "arpg": 6.0}  # ARPG's grows to it along the steps
IMAGES_A_CLASS = 4


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    shipped = [family for family in SCHEDULES if (CHECKPOINTS / f"{family}.safetensors").exists()]
    bundles = {family: compile_bundle(family, output) for family in shipped}
    images = 10 * IMAGES_A_CLASS
    click.echo(
        f"\n{images} images a schedule, fp32, batch {images}, onnxruntime "
        f"{load_library().__version__}, {platform.machine()} CPU, {os.cpu_count()} cores"
    )
    click.echo(f"{'model':9} {'schedule':9} {'steps':>5} {'ms/image':>9} {'images/s':>9} {'guidance':>8}  images")
    for family, bundle in bundles.items():
        with Runner.open(bundle) as runner:
            for schedule in SCHEDULES[family]:
                picture = output / f"fashion-{schedule.replace(':', '-')}.png"
                steps, seconds = generate(runner, schedule, GUIDANCE[family], picture)
                row = f"{family:9} {schedule:9} {steps:5} {1000 * seconds:9.1f} {1 / seconds:9.1f}"
                click.echo(f"{row} {GUIDANCE[family]:8g}  {picture}")
    if "arpg" in bundles:
        with Runner.open(bundles["arpg"]) as runner:
            inpaint(runner, output / "fashion-inpainting.png")


def compile_bundle(family: str, output: Path) -> Path:
    """Export a demo checkpoint and build its engine; returns the bundle."""
    bundle = output / ("fashion.bundle" if family == "llamagen" else f"fashion-{family}.bundle")
    arforge(
        "export",
        family,
        *("--config", CHECKPOINTS / f"{family}.json"),
        *("--checkpoint", CHECKPOINTS / f"{family}.safetensors"),
        *("--tokenizer", CHECKPOINTS / "tokenizer.safetensors"),
        *("--labels", HERE / "labels.txt"),
        *("--output", bundle),
        "--overwrite",
    )
    arforge("build", bundle, "--target", "onnxruntime")
    return bundle


def generate(runner: Runner, schedule: str, guidance: float, picture: Path) -> tuple[int, float]:
    """Save a grid of images; returns the steps and the seconds an image took."""
    classes = list(range(10)) * IMAGES_A_CLASS
    runner.generate(classes[:1], schedule=schedule)  # warm-up
    result = runner.generate(classes, schedule=schedule, guidance=guidance, batch=len(classes))
    assert result.images is not None
    save_png(picture, result.images, columns=10, zoom=2)
    return result.steps, (result.seconds + result.image_seconds) / len(classes)


def inpaint(runner: Runner, picture: Path) -> None:
    """Save three rows: an image of each class, its lower half anew, and the same as the class before it."""
    classes = list(range(10))
    request = {"schedule": "arpg:8", "guidance": GUIDANCE["arpg"]}
    original = runner.generate(classes, **request).images
    assert original is not None
    known = runner.encode(original)
    known[:, known.shape[1] // 2 :] = UNKNOWN
    rows = [original]
    for labels in (classes, np.roll(classes, 1).tolist()):
        painted = runner.generate(labels, range(50, 60), known=known, **request).images
        assert painted is not None
        rows.append(painted)
    save_png(picture, np.concatenate(rows), columns=10, zoom=2)
    click.echo(f"lower halves decoded anew, as their own class and as another: {picture}")


if __name__ == "__main__":
    main()
