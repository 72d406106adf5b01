"""Makes the demo checkpoints from Fashion-MNIST: tokenizer, generators, and classifier.

    python examples/fashion/train.py all
    python examples/fashion/train.py arpg --start examples/fashion/checkpoints --work out/more    # goes on training

About two hours on two CPU cores. Stages can be run one at a time; a model run that was cut off resumes from `--work`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import classifier as judge
import click
import data
import model as generator
import tokenizer as vq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arforge.calibration.quality.classifier import Classifier
from arforge.export.families import llamagen
from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.families.par import TRANSITION_EMBEDDING
from arforge.export.image_tokenizers.vq import VQModel

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TOKENS = "tokens.safetensors"


@click.command(help=__doc__)
@click.argument("stage", type=click.Choice(["all", "tokenizer", *generator.FAMILIES, "classifier"]))
@click.option("--data", "folder", type=click.Path(path_type=Path), default=data.FOLDER, help="Folder of the data set.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("out/fashion"), help="Folder for resumable state."
)
@click.option("--checkpoints", type=click.Path(path_type=Path), default=CHECKPOINTS, help="Folder of the weights.")
@click.option("--start", type=click.Path(path_type=Path), help="Folder of weights that a generator goes on from.")
@click.option("--tokenizer-steps", default=2000, show_default=True)
@click.option("--model-steps", default=1500, show_default=True)
@click.option("--classifier-steps", default=1400, show_default=True)
@click.option("--peak-rate", default=generator.PEAK_RATE, show_default=True, help="Learning rate of the generators.")
@click.option("--threads", type=int, help="CPU threads.  [default: one a core]")
def main(
    stage: str,
    folder: Path,
    work: Path,
    checkpoints: Path,
    start: Path | None,
    tokenizer_steps: int,
    model_steps: int,
    classifier_steps: int,
    peak_rate: float,
    threads: int | None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array.copy()) for array in data.load("train", folder))
    if stage in ("all", "classifier"):
        save(judge.train(images, labels, classifier_steps).state_dict(), checkpoints / "classifier.safetensors")
        judge.export(checkpoints / "classifier.safetensors", checkpoints / "classifier.onnx")
        real, real_labels = data.load("t10k", folder)
        made = Classifier(checkpoints / "classifier.onnx", real.shape[1:], len(data.CLASSES))
        share = made.hits(data.rgb(real), real_labels) / len(real)
        click.echo(f"classifier: {share:.4f} of the test images")
    if stage in ("all", "tokenizer"):
        save(vq.train(images, tokenizer_steps).state_dict(), checkpoints / "tokenizer.safetensors")
        (work / TOKENS).unlink(missing_ok=True)
    for name, family in generator.FAMILIES.items():
        if stage in ("all", name):
            tokens = image_tokens(images, checkpoints if start is None else start, work)
            first = None if start is None else model_layout(load_file(start / f"{name}.safetensors"))
            model = generator.train(family, tokens, labels, model_steps, work / f"{name}.pt", peak_rate, first)
            save(authors_layout(model.state_dict(), family.config), checkpoints / f"{name}.safetensors")
            config = {key: value for key, value in asdict(family.config).items() if value is not None}
            (checkpoints / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


def image_tokens(images: Tensor, checkpoints: Path, work: Path) -> Tensor:
    """Tokens int64 [n, cells] of the training images, kept in `work` for the next stage."""
    file = work / TOKENS
    if not file.exists():
        tokens = vq.encode(load_tokenizer(checkpoints), images)
        save_file({"tokens": tokens.to(torch.int16)}, file)
    return load_file(file)["tokens"].long()


def load_tokenizer(checkpoints: Path) -> VQModel:
    model = VQModel(vq.CONFIG)
    model.load_state_dict({k: v.float() for k, v in load_file(checkpoints / "tokenizer.safetensors").items()})
    return model.eval()


def authors_layout(state: dict[str, Tensor], config: LlamaGenConfig) -> dict[str, Tensor]:
    """Split the one embedding table as the authors' checkpoints do; ARPG's is one there too."""
    if llamagen.EMBEDDING not in state:
        return state
    table, vocab, special = state[llamagen.EMBEDDING], config.vocab_size, config.tokens - config.transition_tokens
    parts = {llamagen.EMBEDDING: table[:vocab], llamagen.CLASS_EMBEDDING: table[vocab:special]}
    if config.transition_tokens:
        parts[TRANSITION_EMBEDDING] = table[special:]
    return state | parts


def model_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back from `authors_layout`, in float32."""
    names = (llamagen.EMBEDDING, llamagen.CLASS_EMBEDDING, TRANSITION_EMBEDDING)
    tables = [state.pop(name) for name in names if name in state]
    joined = {llamagen.EMBEDDING: torch.cat(tables)} if tables else {}
    return {name: tensor.float() for name, tensor in (state | joined).items()}


def save(state: dict[str, Tensor], path: Path) -> None:
    """Weights as float16: half the size; what is exported of them computes in float32."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file({k: v.contiguous().clone() for k, v in half.items()}, path)


if __name__ == "__main__":
    main()
