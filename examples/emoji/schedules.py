"""How often a held-out wording gives its emoji by each schedule of a bundle, drawn by arforge's runner.

    python examples/emoji/schedules.py out/emoji.bundle --schedule ntp --schedule zipar:6 --write
    python examples/emoji/schedules.py out/emoji.bundle --in-blocks --schedule zipar:6 --guidance 1.25 --write

The second is with weights in blocks of 8 and of 4 bits. `make demo` makes the bundle. The judge is `evaluate.py`'s: the
nearest real picture.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blocks
import captions
import click
import data
from evaluate import score
from weights import CHECKPOINTS

from arforge.runner import Runner, open_bundle


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=data.WORK, help="Folder of the download.")
@click.option("--schedule", "schedules", multiple=True, default=("ntp", "zipar:6", "zipar:3"), show_default=True)
@click.option("--guidance", "scales", multiple=True, type=float, default=(1.0, 1.25), show_default=True)
@click.option("--precision", help="Of the bundle's engine.  [default: fp32]")
@click.option("--in-blocks", is_flag=True, help="Weights in blocks of 8 and of 4 bits, made of the float32 ones.")
@click.option("--samples", default=captions.HELD_OUT, show_default=True, help="Held-out wordings.")
@click.option("--threads", type=int, help="CPU threads.  [default: one an available core]")
@click.option("--write", is_flag=True, help="Keep the figures beside the checkpoints.")
def main(
    bundle: Path,
    work: Path,
    schedules: tuple[str, ...],
    scales: tuple[float, ...],
    precision: str | None,
    in_blocks: bool,
    samples: int,
    threads: int | None,
    write: bool,
) -> None:
    emoji, real = data.load(work)
    _, held_out = captions.split(emoji)
    samples = min(samples, len(held_out))
    wordings = [held_out[i * len(held_out) // samples] for i in range(samples)]
    rows: list[dict[str, Any]] = []

    def measure(runner: Runner, **facts: int) -> str:
        """The device."""
        for schedule in schedules:
            for guidance in scales:
                made = runner.generate(
                    prompts=[wording.text for wording in wordings], schedule=schedule, guidance=guidance
                )
                assert made.images is not None
                found = score(made.images, [wording.emoji for wording in wordings], real, emoji)
                rows.append({**facts, "schedule": schedule, "guidance": guidance, "steps": made.steps, **asdict(found)})
                click.echo(
                    f"{schedule:10} guidance {guidance:<5g} {made.steps:4} steps  emoji {found.emoji:.3f}  "
                    f"group {found.group:.3f}  {facts or ''}"
                )
        return runner.device

    if in_blocks:
        for case in (blocks.INT8, *blocks.INT4):
            with blocks.open_in_blocks(open_bundle(bundle), case, threads) as runner:
                device = measure(runner, **asdict(case))
    else:
        with Runner.open(bundle, precision=precision, threads=threads) as runner:
            device = measure(runner)
    if write:
        facts = {
            "measure": "share of pictures whose nearest real one is the wording's emoji, or one of its group",
            "samples": samples,
            "seeds": f"0 to {samples - 1}",
            "precision": "weights in blocks" if in_blocks else precision or "fp32",
            "device": device,
            "versions": {name: version(name) for name in ("arforge", "onnxruntime", "tokenizers")},
            "command": " ".join(["python examples/emoji/schedules.py", *sys.argv[1:]]),
            "figures": rows,
        }
        name = "llamagen-t2i.blocks.json" if in_blocks else "llamagen-t2i.schedules.json"
        (CHECKPOINTS / name).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
