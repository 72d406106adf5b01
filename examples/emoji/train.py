"""Makes the emoji demo's checkpoints: image tokenizer, text encoder, and text-to-image model.

    python examples/emoji/train.py all
    python examples/emoji/train.py model --start examples/emoji/checkpoints --work out/more    # goes on training

Two hours on one CPU core. Stages can be run one at a time; a run that was cut off resumes from `--work`. The patches
that tokens stand for are made only where there are none, so that tokens stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import captions
import click
import data
import emu3
import pretraining
import tokenizer as vq
import torch
import training
from model import Generator
from safetensors.torch import save_file
from torch import Tensor
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

STAGES = ("decoder", "model", "emu3")


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
@click.option("--emu3-steps", default=8000, show_default=True)
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
    emu3_steps: int,
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
    seen, _ = captions.split(emoji)
    if stage in ("all", "model"):
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
    if stage in ("all", "emu3"):
        train_emu3(seen, tokens.flatten(1), start, emu3_steps, work / "emu3.pt", peak_rate, batch, checkpoints)


def train_emu3(
    seen: Sequence[captions.Wording],
    codes: Tensor,
    start: Path | None,
    steps: int,
    resume: Path,
    peak_rate: float,
    batch: int,
    checkpoints: Path,
) -> None:
    """The model that reads prompts as words of its own vocabulary."""
    torch.manual_seed(0)
    if start is None:
        words = emu3.train_tokenizer([wording.text for wording in seen])
        model = emu3.Emu3(emu3.config_of(words))
    else:
        model, words = emu3.load_folder(start / emu3.FOLDER)
    lines = emu3.Sequences(model.config, words)
    prompts: list[list[list[int]]] = [[] for _ in codes]
    for wording in seen:
        prompts[wording.emoji].append(lines.prompt(wording.text))

    def loss(blind: float) -> Tensor:
        return emu3.batch_loss(model, lines, codes, prompts, torch.randint(len(codes), (batch,)), blind)

    trained = training.optimize(model, {model: 1.0}, loss, steps, resume, peak_rate, batch)
    emu3.save_folder(trained, words, checkpoints / emu3.FOLDER)


if __name__ == "__main__":
    main()
