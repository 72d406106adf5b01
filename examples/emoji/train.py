"""Makes the emoji demo's checkpoints: image tokenizer, text encoder, and text-to-image model.

    python examples/emoji/train.py all
    python examples/emoji/train.py model --start examples/emoji/checkpoints --work out/more    # goes on training

Two hours on one CPU core. Stages can be run one at a time; a run that was cut off resumes from `--work`. The patches
that tokens stand for are made only where there are none, so that tokens stay what they are.
"""

from __future__ import annotations

from pathlib import Path

import captions
import click
import data
import pretraining
import tokenizer as vq
import torch
import training
from model import Generator
from safetensors.torch import save_file
from weights import (
    CHECKPOINTS,
    PATCHES,
    TOKENIZER,
    load_generator,
    load_patches,
    load_tokenizer,
    save,
    save_generator,
    text_tokenizer,
)

STAGES = ("decoder", "model")


@click.command(help=__doc__)
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option(
    "--work", type=click.Path(path_type=Path), default=data.WORK, help="Folder of the download and resumable state."
)
@click.option("--checkpoints", type=click.Path(path_type=Path), default=CHECKPOINTS, help="Folder of the weights.")
@click.option("--start", type=click.Path(path_type=Path), help="Folder of weights that training goes on from.")
@click.option("--decoder-steps", default=6000, show_default=True)
@click.option("--text-steps", default=2500, show_default=True)
@click.option("--model-steps", default=8500, show_default=True)
@click.option("--batch", default=training.BATCH, show_default=True, help="Pictures a step of the model.")
@click.option("--peak-rate", default=training.PEAK_RATE, show_default=True, help="Learning rate of the model.")
@click.option("--threads", default=1, show_default=True)
@click.option("--compile", "faster", is_flag=True, help="Compile the image decoder; needs a C++ compiler.")
def main(
    stage: str,
    work: Path,
    checkpoints: Path,
    start: Path | None,
    decoder_steps: int,
    text_steps: int,
    model_steps: int,
    batch: int,
    peak_rate: float,
    threads: int,
    faster: bool,
) -> None:
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    emoji, pictures = data.load(work)
    images = torch.from_numpy(pictures)
    if not (checkpoints / PATCHES).exists():
        centres = vq.cluster(images)
        save_file({"patches": centres.half()}, checkpoints / PATCHES)
    centres = load_patches(checkpoints)
    tokens = vq.assign(images, centres)
    tokenizer = vq.new(centres) if start is None or stage == "all" else load_tokenizer(start)
    if stage in ("all", "decoder"):
        vq.train_decoder(tokenizer, tokens, images, decoder_steps, work / "decoder.pt", faster)
        save(tokenizer, checkpoints / TOKENIZER)
    if stage in ("all", "model"):
        seen, _ = captions.split(emoji)
        words = text_tokenizer(checkpoints, [wording.text for wording in seen])
        ids: list[list[list[int]]] = [[] for _ in emoji]
        for wording, row in zip(seen, captions.token_ids(words, [w.text for w in seen]), strict=True):
            ids[wording.emoji].append(row)
        torch.manual_seed(0)
        model = Generator() if start is None else load_generator(start)
        if start is None and not (work / "model.pt").exists():
            pretraining.train(model.text, images, ids, text_steps)
        trained = training.train(model, tokens.flatten(1), ids, model_steps, work / "model.pt", peak_rate, batch)
        save_generator(trained, checkpoints)


if __name__ == "__main__":
    main()
