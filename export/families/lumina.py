"""Lumina-mGPT (arXiv 2408.02657), a Chameleon: sizes, checkpoint layout, and the model that is traced.

Queries and keys are normed a head at a time. The 34B's layout norms what a sublayer gives, not what it takes. A row of
an image ends with a token of its own, which is forced; the image begins with its size in units of two tokens a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llama
from arforge.export.families.family import PROMPT_SLOTS, Family, Shapes, Size
from arforge.export.families.llama import Llama, RowDimensions
from arforge.export.model_folder import Description, Words
from arforge.export.rows import Values
from arforge.runner.bundle import IdsCondition, SamplerDefaults

VARIANTS = {"7B": Size(32, 32, 4096)}
MOST_UNITS = (1024 // 32) ** 2  # of 32 pixels a side, in the largest images that were trained on
LARGEST_RATIO = 4
FIRST_SIZE = 8804  # the word that stands for a side of so many units, counted from here
FIRST_TEXT = 16384  # words before it are image tokens and special ones
FIRST_IMAGE = "IMGIMGAZ"  # the name of image token 0: its number in letters, A for 0, between IMGIMG and Z
USUAL = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 65536,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
"""What the authors' configurations leave out."""


@dataclass(frozen=True)
class LuminaConfig(RowDimensions):
    vocab_size: int = 8192
    norm_groups: int = 1  # of heads, that share the scales and biases of their norms
    swin_norm: bool = False

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from llama.check_heads(self)
        rows, columns = self.grid
        if rows % 2 or columns % 2:
            yield f"grid {rows}x{columns}: both sides must be even, since images come in units of two tokens a side"
        if max(rows, columns) > LARGEST_RATIO * min(rows, columns):
            yield f"grid {rows}x{columns}: no side may be more than {LARGEST_RATIO} times the other"
        if rows * columns > 4 * MOST_UNITS:
            yield f"grid {rows}x{columns} has more than the {4 * MOST_UNITS} tokens of the largest images"
        for what, heads in (("n_head", self.n_head), ("n_kv_head", self.kv_heads)):
            if heads % min(self.norm_groups, heads):
                yield f"norm_groups {self.norm_groups} does not divide {what} {heads}"


class Lumina(Llama):
    def __init__(self, config: LuminaConfig) -> None:
        super().__init__(config, head_norms=True, norm_after=config.swin_norm)


def checkpoint_shapes(config: LuminaConfig) -> Shapes:
    """The tensors of the authors' checkpoints."""
    shapes = llama.checkpoint_shapes(config)
    for layer in range(config.n_layer):
        for part, heads in (("q", config.n_head), ("k", config.kv_heads)):
            for what in ("weight", "bias"):
                rows = min(config.norm_groups, heads)
                shapes[f"layers.{layer}.self_attn.{part}_norm.{what}"] = (rows, config.head_size)
    return shapes


def parameter(config: LuminaConfig, checkpoint: Checkpoint, name: str) -> Values:
    """A parameter of `Lumina` from the authors' checkpoint: norms get a row a head."""
    for part, heads in (("q_norm", config.n_head), ("k_norm", config.kv_heads)):
        if f".attention.{part}." in name:
            rows = checkpoint.tensor(name.replace(".attention.", ".self_attn."))
            return torch.repeat_interleave(rows, heads // len(rows), dim=0)
    return llama.row_parameter(config, checkpoint, name)


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    return {**llama.infer(shapes, LuminaConfig, heads), "norm_groups": norm_groups(shapes)}


def described(description: Description, shapes: Shapes) -> dict[str, Any]:
    """The dimensions that a `config.json` tells (`Family.described`).

    The tensors tell how many heads share a norm: `model_parallel_size` says so of the authors' layout alone.
    """
    words = {name: number for name, number in description.part("vocabulary_map").values.items() if type(number) is int}
    return {
        **llama.described(description, LuminaConfig, **USUAL),
        "swin_norm": description.flag("swin_norm", usual=False),
        "norm_groups": norm_groups(shapes),
        "first_image": words.get(FIRST_IMAGE, 4),
        "row_end": words.get(reserved(8799), 8803),
    }


def norm_groups(shapes: Shapes) -> int:
    """Raises KeyError without norms of heads."""
    return max(1, shapes["layers.0.self_attn.q_norm.weight"][0])


def tensors(names: Iterable[str]) -> dict[str, str]:
    return llama.decoder_tensors(names, ("model.language_model.", "model."))


def reserved(number: int) -> str:
    """The name of a word that training gave a meaning to."""
    return f"<reserved{number:05d}>"


def template(config: LuminaConfig, words: Words) -> IdsCondition:
    """The prompt: the size in pixels and the user's text, the end of the turn, and the image's beginning."""
    rows, columns = config.grid
    sides = (words.id(reserved(8800 + side // 2), FIRST_SIZE + side // 2) for side in (rows, columns))
    begin = words.id("<racm3:break>", 8197)
    return IdsCondition(
        slots=config.slots,
        vocabulary=config.words,
        prefix=(words.id("<s>", 0),),
        before=f"Generate an image of {16 * columns}x{16 * rows} according to the following prompt:\n",
        after="",
        stripped=False,
        suffix=(words.id(reserved(8706), 8710), begin, *sides),
        start=3,
        padding=words.id("<pad>", 1),
        reserved=words.reserved([] if words.tokenizer else [(0, FIRST_TEXT - 1)]),
        negative=(),
        unconditional="image",
    )


def default_schedules(config: LuminaConfig) -> list[str]:
    """Next-token, and ZipAR at the window of its authors' pictures of 48x48, a smaller one for smaller grids."""
    return ["ntp", f"zipar:{min(16, max(2, config.grid[1] // 3))}"]


FAMILY = Family(
    name="lumina",
    order="raster",
    sign=("embed_tokens.", "self_attn.q_proj.", "mlp.gate_proj.", "self_attn.q_norm.", "self_attn.k_norm."),
    variants=VARIANTS,
    grids=((32, 32), (48, 48), (64, 64)),
    config=LuminaConfig,
    required=("dim", "n_layer", "n_head", "grid"),
    infer=infer,
    module=Lumina,
    condition_module=llama.Vocabulary,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=lambda config: template(config, Words()),
    template=template,
    specials=lambda config: (config.vocab_size,),
    row_end=0,
    schedules=default_schedules,
    sampler=lambda _: SamplerDefaults(guidance=4.0, temperature=1.0, top_k=2000, top_p=1.0),
    options=(PROMPT_SLOTS,),
    positions="sequence",
    tables=llama.tables,
    tensors=tensors,
    model_types=("chameleon",),
    described=described,
)
