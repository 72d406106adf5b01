"""Emu3-Gen (arXiv 2409.18869): sizes, checkpoint layout, and the model that is traced.

A Llama with grouped heads. A row of an image ends with a token of its own, which is forced; unconditional rows see a
negative prompt. The authors guide log-probabilities of the whole vocabulary: cut to the image tokens that differs from
guided logits by one number for all of them, which no step of sampling sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from arforge.export.families import llama
from arforge.export.families.family import PROMPT_SLOTS, Family, Shapes, Size
from arforge.export.families.llama import Llama, RowDimensions
from arforge.export.model_folder import Description, Words
from arforge.runner.bundle import IdsCondition, SamplerDefaults

VARIANTS = {"8B": Size(32, 32, 4096)}
PIXELS = 8  # a token, a side
AREA = 720 * 720  # of an image in pixels
QUALITY = " masterpiece, film grained, best quality."
FLAWS = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
BYTES = {"*": 9, **{str(digit): 15 + digit for digit in range(10)}}
"""The words that sizes are written in, one a character."""
USUAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 184622,
    "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""What the authors' configurations leave out."""
SPECIAL = {"bos": 151849, "img": 151851, "boi": 151852, "eoi": 151853, "eol": 151846}
NAMES = {
    "bos": "<|extra_203|>",
    "img": "<|image token|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
    "eol": "<|extra_200|>",
}
FIRST_IMAGE = "<|visual token 000000|>"


@dataclass(frozen=True)
class Emu3Config(RowDimensions):
    vocab_size: int = 32768
    n_kv_head: int | None = 8
    rope_base: float = 1e6
    multiple_of: int = 1024
    ffn_dim_multiplier: float | None = 1.3
    words: int = 184622
    max_positions: int = 9216
    first_image: int = 151854
    row_end: int = SPECIAL["eol"]
    first_word: int = SPECIAL["bos"]  # of every prompt
    image_word: int = SPECIAL["img"]  # that an image's tokens follow
    size_word: int = SPECIAL["boi"]  # that an image's size follows

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from llama.check_image(self)


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    return llama.infer(shapes, Emu3Config, heads)


def described(description: Description, _: Shapes) -> dict[str, Any]:
    """The dimensions that a `config.json` tells (`Family.described`); image tokens reach to the vocabulary's end."""
    listed = description.part("vocabulary_map").values

    def special(name: str) -> int:
        return description.whole(f"{name}_token_id", listed.get(NAMES[name]) or SPECIAL[name])

    fields = llama.described(description.part("text_config") if listed else description, Emu3Config, **USUAL)
    first = description.part("vocabulary_map").whole(FIRST_IMAGE, special("eoi") + 1)
    side = round(math.sqrt(description.number("image_area", AREA)) / PIXELS)
    return {
        **fields,
        "first_image": first,
        "vocab_size": fields["words"] - first,
        "row_end": special("eol"),
        "first_word": special("bos"),
        "image_word": special("img"),
        "size_word": special("boi"),
        "grid": (side, side),
    }


def tensors(names: Iterable[str]) -> dict[str, str]:
    return llama.decoder_tensors(names, ("text_model.model.", "model.text_model.", "text_model.", "model."))


def template(config: Emu3Config, words: Words) -> IdsCondition:
    """The prompt: the user's text and a praise, and the image's beginning with its size in tokens."""
    size = f"{config.grid[0]}*{config.grid[1]}"
    written = words.encode(size) if words.tokenizer else tuple(BYTES[character] for character in size)
    suffix = (config.size_word, *written, config.image_word)
    first = (config.first_word,)
    special = [(config.row_end, config.words - 1)]
    return IdsCondition(
        slots=config.slots,
        vocabulary=config.words,
        prefix=first,
        before="",
        after=QUALITY,
        stripped=False,
        suffix=suffix,
        start=1,
        padding=None,
        reserved=words.reserved(special),
        negative=(*first, *words.encode(FLAWS), *suffix) if words.tokenizer else (),
        unconditional="negative",
    )


def default_schedules(config: Emu3Config) -> list[str]:
    """Next-token, and ZipAR at the window that gives the paper's 713 steps at 90x90, a smaller one for small grids."""
    return ["ntp", f"zipar:{min(8, max(2, config.grid[1] // 3))}"]


FAMILY = Family(
    name="emu3",
    order="raster",
    sign=("embed_tokens.", "self_attn.q_proj.", "mlp.gate_proj."),
    variants=VARIANTS,
    grids=((90, 90),),
    config=Emu3Config,
    required=("dim", "n_layer", "n_head", "grid"),
    infer=infer,
    module=Llama,
    condition_module=llama.Vocabulary,
    checkpoint_shapes=llama.checkpoint_shapes,
    parameter=llama.row_parameter,
    condition=lambda config: template(config, Words()),
    template=template,
    specials=lambda config: (config.vocab_size,),
    row_end=0,
    schedules=default_schedules,
    sampler=lambda _: SamplerDefaults(guidance=3.0, temperature=1.0, top_k=2048, top_p=1.0),
    options=(PROMPT_SLOTS,),
    positions="sequence",
    tables=llama.tables,
    tensors=tensors,
    model_types=("Emu3", "emu3"),
    described=described,
    token_pixels=PIXELS,
)
