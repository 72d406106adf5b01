"""From the demo checkpoint to images, on a plain CPU: export, build, generate with each schedule, compare.

python examples/fashion/demo.py [--output FOLDER]
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import click
import onnxruntime

from arforge.runner import Runner
from arforge.runner.images import save_png

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
SCHEDULES = ("ntp", "zipar:4", "zipar:2")
IMAGES_A_CLASS = 4
GUIDANCE = 2.0


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    bundle = output / "fashion.bundle"
    arforge(
        "export",
        "llamagen",
        *("--config", CHECKPOINTS / "llamagen.json"),
        *("--checkpoint", CHECKPOINTS / "llamagen.safetensors"),
        *("--tokenizer", CHECKPOINTS / "tokenizer.safetensors"),
        *("--output", bundle),
        "--overwrite",
    )
    arforge("build", bundle, "--target", "onnxruntime")
    classes = list(range(10)) * IMAGES_A_CLASS
    click.echo(
        f"\n{len(classes)} images a schedule, guidance {GUIDANCE:g}, fp32, batch {len(classes)}, onnxruntime "
        f"{onnxruntime.__version__}, {platform.machine()} CPU, {os.cpu_count()} cores"
    )
    click.echo(f"{'schedule':10} {'steps':>5} {'ms/image':>9} {'images/s':>9}  images")
    with Runner.open(bundle) as runner:
        for schedule in SCHEDULES:
            runner.generate(classes[:1], schedule=schedule)  # warm-up
            result = runner.generate(classes, schedule=schedule, guidance=GUIDANCE, batch=len(classes))
            assert result.images is not None
            picture = output / f"fashion-{schedule.replace(':', '-')}.png"
            save_png(picture, result.images, columns=10, zoom=2)
            each = (result.seconds + result.image_seconds) / len(classes)
            click.echo(f"{schedule:10} {result.steps:5} {1000 * each:9.1f} {1 / each:9.1f}  {picture}")


def arforge(*arguments: str | Path) -> None:
    """Run the command line, showing the command as a user would type it."""
    words = [str(argument) for argument in arguments]
    click.echo(f"$ arforge {' '.join(words)}")
    subprocess.run([sys.executable, "-m", "arforge", *words], check=True)


if __name__ == "__main__":
    main()
