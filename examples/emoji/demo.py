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
MODELS: dict[str, tuple[str | Path, ...]] = {
    "emoji": (
        *(CHECKPOINTS / "llamagen-t2i.safetensors", "--config", CHECKPOINTS / "llamagen-t2i.json"),
        *("--text-encoder", CHECKPOINTS / "text-encoder"),
    ),
    "emoji-emu3": (CHECKPOINTS / "emu3", "--grid", "10x10", "--precision", "fp32"),
}
"""What each is exported from: LlamaGen t2i behind a text encoder, and Emu3, to which prompts are words like images."""
GUIDANCE = {"emoji": 1.25, "emoji-emu3": 1.25}
PROMPTS = (
    *("a red heart", "the face of a happy cat", "a slice of pizza", "an astronaut woman", "a yellow star"),
    *("the flag of Japan", "a big rocket", "please draw a sunflower", "one octopus", "a blue heart for you"),
)


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    bundles = {name: compile_bundle(name, output) for name in MODELS}
    click.echo(
        f"\n{len(PROMPTS)} prompts a schedule, fp32, one batch, onnxruntime {load_library().__version__}, "
        f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    click.echo(f"{'model':10} {'schedule':9} {'steps':>5} {'ms/image':>9} {'prompts':>9}  images")
    for name, bundle in bundles.items():
        with Runner.open(bundle) as runner:
            for schedule in SCHEDULES:
                runner.generate(prompts=PROMPTS[:1], schedule=schedule)  # warm-up
                result = runner.generate(prompts=PROMPTS, schedule=schedule)
                picture = output / f"{name}-{schedule.replace(':', '-')}.png"
                assert result.images is not None
                save_png(picture, result.images, columns=5, zoom=3)
                seconds = result.condition_seconds + result.seconds + result.image_seconds
                each, prompts = (1000 * taken / len(PROMPTS) for taken in (seconds, result.condition_seconds))
                click.echo(f"{name:10} {schedule:9} {result.steps:5} {each:9.1f} {prompts:6.1f} ms  {picture}")
    click.echo(f"prompts, row by row: {'; '.join(PROMPTS)}")


def compile_bundle(name: str, output: Path) -> Path:
    """Export a demo checkpoint and build its engine; returns the bundle."""
    bundle = output / f"{name}.bundle"
    arforge(
        *("export", *MODELS[name]),
        *("--image-tokenizer", CHECKPOINTS / "tokenizer.safetensors"),
        *("--guidance", str(GUIDANCE[name]), "--top-k", "0", "--output", bundle, "--overwrite"),
    )
    arforge("build", bundle, "--target", "onnxruntime")
    return bundle


if __name__ == "__main__":
    main()
