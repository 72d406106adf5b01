"""From the text-to-image demo checkpoint to pictures of prompts, on a plain CPU: export, build, draw.

python examples/emoji/demo.py [--output FOLDER]
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click
from common import arforge

from arforge.runner import Runner
from arforge.runner.backends.onnxruntime_session import load_library
from arforge.runner.images import save_png

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SCHEDULES = ("ntp", "zipar:6", "zipar:3")
GUIDANCE = 1.25
PROMPTS = (
    *("a red heart", "the face of a happy cat", "a slice of pizza", "an astronaut woman", "a yellow star"),
    *("the flag of Japan", "a big rocket", "please draw a sunflower", "one octopus", "a blue heart for you"),
)


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    bundle = output / "emoji.bundle"
    arforge(
        *("export", CHECKPOINTS / "llamagen-t2i.safetensors", "--config", CHECKPOINTS / "llamagen-t2i.json"),
        *("--image-tokenizer", CHECKPOINTS / "tokenizer.safetensors"),
        *("--text-encoder", CHECKPOINTS / "text-encoder"),
        *("--guidance", str(GUIDANCE), "--top-k", "0", "--output", bundle, "--overwrite"),
    )
    arforge("build", bundle, "--target", "onnxruntime")
    click.echo(
        f"\n{len(PROMPTS)} prompts a schedule, fp32, one batch, onnxruntime {load_library().__version__}, "
        f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    click.echo(f"{'schedule':9} {'steps':>5} {'ms/image':>9} {'prompts':>9}  images")
    with Runner.open(bundle) as runner:
        for schedule in SCHEDULES:
            runner.generate(prompts=PROMPTS[:1], schedule=schedule)  # warm-up
            result = runner.generate(prompts=PROMPTS, schedule=schedule)
            picture = output / f"emoji-{schedule.replace(':', '-')}.png"
            assert result.images is not None
            save_png(picture, result.images, columns=5, zoom=3)
            seconds = result.condition_seconds + result.seconds + result.image_seconds
            each, prompts = (1000 * taken / len(PROMPTS) for taken in (seconds, result.condition_seconds))
            click.echo(f"{schedule:9} {result.steps:5} {each:9.1f} {prompts:6.1f} ms  {picture}")
    click.echo(f"prompts, row by row: {'; '.join(PROMPTS)}")


if __name__ == "__main__":
    main()
