"""How often a caption that was never trained on gives its emoji, judged by the nearest real picture.

    python examples/emoji/evaluate.py --write

The pictures come from any function of captions, seeds and guidance: here from torch, next-token.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import captions
import click
import data
import numpy as np
import tokenizer as vq
import tokenizers
import torch
from captions import Wording
from data import Emoji
from model import Generator
from PIL import Image
from tokenizers import Tokenizer
from weights import CHECKPOINTS, load_generator, load_patches, load_tokenizer, text_tokenizer

from arforge.export.image_tokenizers.vq import VQModel
from arforge.version import VERSION

GUIDANCE = (1.0, 1.25, 1.5, 2.0, 3.0)

Source = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""Captions and as many seeds to pictures, uint8 [n, side, side, 3]."""

SHEET = (
    *("red heart", "a picture of a cat face", "pizza", "please show me a dog face", "flag of japan", "grinning face"),
    *("an icon for rocket", "tiger", "make me an emoji of a banana", "octopus", "woman astronaut", "sunflower"),
    *("green apple", "i want a picture of a blue heart", "saxophone", "soccer ball", "crying face", "flag of canada"),
    *("alarm clock", "thumbs up", "rainbow", "hamburger", "bicycle", "a nice picture of a snowman"),
)


@click.command(help=__doc__)
@click.option("--checkpoints", type=click.Path(path_type=Path), default=CHECKPOINTS, help="Folder of the weights.")
@click.option("--work", type=click.Path(path_type=Path), default=data.WORK, help="Folder of the download.")
@click.option("--samples", default=captions.HELD_OUT, show_default=True, help="Held-out wordings.")
@click.option("--search", default=100, show_default=True, help="Of them those that the best guidance is found with.")
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG of a few pictures, at the best guidance.")
@click.option("--write", is_flag=True, help="Keep the figures beside the checkpoints.")
@click.option("--threads", default=1, show_default=True)
def main(
    checkpoints: Path, work: Path, samples: int, search: int, sheet: Path | None, write: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    emoji, real = data.load(work)
    _, held_out = captions.split(emoji)
    # the first half has templates that training saw
    samples = min(samples, len(held_out))
    wordings = [held_out[i * len(held_out) // samples] for i in range(samples)]
    few = wordings[:: max(1, samples // search)]
    model, words, tokenizer = (
        load_generator(checkpoints).eval(),
        text_tokenizer(checkpoints),
        load_tokenizer(checkpoints),
    )
    figures: dict[str, dict[str, float]] = {}

    def measure(guidance: float, some: Sequence[Wording], **parts: slice) -> float:
        source = torch_source(model, words, tokenizer, guidance)
        made = source([w.text for w in some], range(len(some)))
        wanted = [w.emoji for w in some]
        name = f"ntp, guidance {guidance:g}"
        for part, chosen in {f"{len(some)} samples": slice(None), **parts}.items():
            found = score(made[chosen], wanted[chosen], real, emoji)
            figures[f"{name}, {part}"] = {key: round(value, 4) for key, value in asdict(found).items()}
            click.echo(f"{name}, {part:25} emoji {found.emoji:.3f} group {found.group:.3f}")
        return figures[f"{name}, {len(some)} samples"]["emoji"]

    tokens = vq.assign(torch.from_numpy(real), load_patches(checkpoints))
    through = vq.decode(tokenizer, tokens.flatten(1), model.image.config.grid)
    found = score(through.numpy(), range(len(real)), real, emoji)
    figures["real pictures through the tokenizer"] = {key: round(value, 4) for key, value in asdict(found).items()}
    best = max(GUIDANCE, key=lambda guidance: measure(guidance, few))
    half = samples // 2
    for guidance in sorted({1.0, best}):
        measure(guidance, wordings, templates_seen=slice(half), templates_unseen=slice(half, None))
    if sheet:
        contact_sheet(model, words, tokenizer, sheet, best)
    if write:
        facts = {
            "measure": "share of pictures whose nearest real one is the caption's emoji, or one of its group",
            "captions": "wordings that training never saw; half of them have a template that it never saw",
            "samples": samples,
            "seeds": f"0 to {samples - 1}",
            "temperature": 1.0,
            "source": "torch, float32, next-token",
            "device": f"CPU, {platform.machine()}",
            "versions": {"arforge": VERSION, "torch": torch.__version__, "tokenizers": tokenizers.__version__},
            "command": "python examples/emoji/evaluate.py --write",
            "best guidance": best,
            "figures": figures,
        }
        (checkpoints / "llamagen-t2i.figures.json").write_text(json.dumps(facts, indent=1) + "\n")


def torch_source(
    model: Generator, words: Tokenizer, tokenizer: VQModel, guidance: float, batch: int = 50, top_k: int = 0
) -> Source:
    def source(texts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        ids, made = captions.token_ids(words, texts), []
        for first in range(0, len(ids), batch):
            part = slice(first, first + batch)
            made.append(model.generate(ids[part], guidance, seeds[part], top_k=top_k))
        return vq.decode(tokenizer, torch.cat(made), model.image.config.grid).numpy()

    return source


@dataclass(frozen=True)
class Score:
    """Shares of pictures whose nearest real one is the caption's emoji, or of its group ("animal-bird")."""

    emoji: float
    group: float


def score(made: np.ndarray, wanted: Sequence[int], real: np.ndarray, emoji: Sequence[Emoji]) -> Score:
    """`made` and `real`: uint8 [n, side, side, 3]; `wanted`: the emoji of each made one."""
    found = nearest(made, real)
    hits = [found[i] == w for i, w in enumerate(wanted)]
    groups = [emoji[found[i]].group == emoji[w].group for i, w in enumerate(wanted)]
    return Score(float(np.mean(hits)), float(np.mean(groups)))


def nearest(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """For each picture the real one with the least squared difference, int64 [n]."""
    a, b = (torch.from_numpy(x.reshape(len(x), -1)).float() / 255 for x in (made, real))
    return ((b**2).sum(1) - 2 * (a @ b.t())).argmin(1).numpy()


def contact_sheet(
    model: Generator, words: Tokenizer, tokenizer: VQModel, path: Path, guidance: float = 3.0, columns: int = 12
) -> None:
    """Pictures of `SHEET`, as a PNG."""
    made = torch_source(model.eval(), words, tokenizer, guidance)(SHEET, range(len(SHEET)))
    save_grid(made, path, columns)


def save_grid(pictures: np.ndarray, path: Path, columns: int, scale: int = 2) -> None:
    rows = [np.concatenate(list(pictures[i : i + columns]), axis=1) for i in range(0, len(pictures), columns)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
