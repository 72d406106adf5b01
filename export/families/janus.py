"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): sizes, checkpoint layout, and the model that is traced.

A Llama language model, of which images have a table and a head of their own. Their table is the codes' vectors passed
through a small network, which is done once, at export. Rows of an image have no ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llama
from arforge.export.families.family import PROMPT_SLOTS, Family, Shapes, Size
from arforge.export.families.llama import Llama, LlamaDimensions
from arforge.export.model_folder import Description, Words
from arforge.export.rows import Rows, Values
from arforge.runner.bundle import IdsCondition, SamplerDefaults

VARIANTS = {"1B": Size(24, 16, 2048), "7B": Size(30, 32, 4096)}
CODES = "gen_embed.weight"
ALIGNER = ("gen_aligner.layers.0", "gen_aligner.layers.2")
PROJECTION, CODE_HEAD = "gen_head.output_mlp_projector", "gen_head.vision_head"
PORTED = {
    "generation_embeddings": "gen_embed",
    "generation_aligner.fc1": ALIGNER[0],
    "generation_aligner.hidden_layers.0": ALIGNER[1],
    "generation_head.proj_out": PROJECTION,
    "generation_head.vision_head": CODE_HEAD,
}
"""The authors' names of what transformers names otherwise."""
HEADS = {"output.projection": PROJECTION, "output.codes": CODE_HEAD}
USUAL = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 102400,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""What the authors' configurations leave out: the 7B's names layers, vocabulary and positions alone."""
FIRST, PADDING, BEGIN = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
PUBLISHED = {FIRST: 100000, PADDING: 100015, BEGIN: 100016}
"""Ids of Janus-1.3B and Janus-Pro-7B; other checkpoints have others, which their tokenizers tell."""


@dataclass(frozen=True)
class JanusConfig(LlamaDimensions):
    norm_eps: float = 1e-6
    words: int = 102400
    max_positions: int = 16384
    code_width: int = 8  # of the vector of a code, before it gets the model's width
    head_width: int | None = None  # between the two layers of the head; None: the model's

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from llama.check_image(self)

    @property
    def head_hidden(self) -> int:
        return self.head_width or self.dim


class CodeHead(nn.Module):
    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.dim, config.head_hidden)
        self.codes = nn.Linear(config.head_hidden, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.codes(F.gelu(self.projection(x)))
        return logits


class Janus(Llama):
    def __init__(self, config: JanusConfig) -> None:
        super().__init__(config, head=CodeHead(config))


def checkpoint_shapes(config: JanusConfig) -> Shapes:
    """The tensors of the authors' checkpoints that draw images; the head of words is not among them."""
    shapes = llama.checkpoint_shapes(config)
    del shapes[llama.HEAD]
    shapes[CODES] = (config.vocab_size, config.code_width)
    sizes = {
        ALIGNER[0]: (config.dim, config.code_width),
        ALIGNER[1]: (config.dim, config.dim),
        PROJECTION: (config.head_hidden, config.dim),
        CODE_HEAD: (config.vocab_size, config.head_hidden),
    }
    for name, shape in sizes.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def parameter(config: JanusConfig, checkpoint: Checkpoint, name: str) -> Values:
    """A parameter of `Janus` from the authors' checkpoint: the table of image tokens is what the aligner makes."""
    if name == "tok_embeddings.weight":
        return image_table(checkpoint)
    part, _, what = name.rpartition(".")
    return checkpoint.rows(f"{HEADS[part]}.{what}") if part in HEADS else llama.parameter(config, checkpoint, name)


def image_table(checkpoint: Checkpoint) -> Rows:
    """[codes, dim] in float32."""
    first, second = ([checkpoint.tensor(f"{name}.{what}").float() for what in ("weight", "bias")] for name in ALIGNER)
    codes = checkpoint.rows(CODES)

    def read(start: int, end: int) -> Tensor:
        return F.linear(F.gelu(F.linear(codes.read(start, end).float(), *first)), *second)

    return Rows((codes.count, len(second[1])), torch.float32, read)


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    return {**llama.infer(shapes, JanusConfig, heads), **image_fields(shapes)}


def image_fields(shapes: Shapes) -> dict[str, Any]:
    codes, width = shapes[CODES]
    hidden, dim = shapes[f"{PROJECTION}.weight"]
    return {"vocab_size": codes, "code_width": width, "head_width": None if hidden == dim else hidden}


def described(description: Description, shapes: Shapes) -> dict[str, Any]:
    """The dimensions that a `config.json` tells (`Family.described`), the authors' or that of transformers' port."""
    text = description.part("language_config", "text_config")
    fields = llama.described(text, JanusConfig, **USUAL)
    aligner = description.part("gen_aligner_config").part("params")
    aligner.require("projector_type", "mlp_gelu")
    aligner.require("depth", 2)
    head, codes = (description.part(name).part("params") for name in ("gen_head_config", "gen_vision_config"))
    port, vision = description.part("vq_config"), description.part("vision_config")
    told = image_fields(shapes)
    hidden = head.whole("image_token_embed", port.whole("image_token_embed_dim", fields["dim"]))
    side = vision.part("params").whole("image_size", vision.whole("image_size", 384)) // 16
    return {
        **fields,
        "vocab_size": codes.whole("image_token_size", port.whole("num_embeddings", told["vocab_size"])),
        "code_width": codes.whole("n_embed", port.whole("embed_dim", told["code_width"])),
        "head_width": None if hidden == fields["dim"] else hidden,
        "grid": (side, side),
    }


def tensors(names: Iterable[str]) -> dict[str, str]:
    """Those of the language model and of what draws; of two layouts (`Family.tensors`)."""
    names = list(names)
    found = llama.decoder_tensors(names, ("language_model.model.", "model.language_model.", "language_model."))
    found.pop(llama.HEAD, None)
    for name in names:
        plain = name.removeprefix("model.")
        for ported, own in PORTED.items():
            plain = re.sub(rf"^{re.escape(ported)}\.", f"{own}.", plain)
        if plain.startswith(("gen_embed.", "gen_aligner.", "gen_head.")):
            found.setdefault(plain, name)
    return found


def template(config: JanusConfig, words: Words) -> IdsCondition:
    """The prompt: a turn of the user's and the beginning of the answer, which begins an image.

    Roles are special words where the vocabulary has them (Janus-Pro), text where it has not (Janus-1.3B).
    """
    first, padding, begin = (words.id(name, usual) for name, usual in PUBLISHED.items())
    prefix: tuple[int, ...] = (first,)
    before, after = "User: ", "\n\nAssistant:"
    suffix: tuple[int, ...] = (begin,)
    if words.tokenizer and USER in words.ids and ASSISTANT in words.ids:
        prefix, before, after = (first, words.ids[USER]), ": ", "\n\n"
        suffix = (words.ids[ASSISTANT], *words.encode(":"), begin)
    return IdsCondition(
        slots=config.slots,
        vocabulary=config.words,
        prefix=prefix,
        before=before,
        after=after,
        stripped=True,
        suffix=suffix,
        start=1,
        padding=padding,
        reserved=words.reserved([] if words.tokenizer else [(first, config.words - 1)]),
        negative=(),
        unconditional="padded",
    )


def default_schedules(config: JanusConfig) -> list[str]:
    """Next-token, and ZipAR at a third of the grid's width; its authors publish none of these models."""
    return ["ntp", f"zipar:{max(1, config.grid[1] // 3)}"]


FAMILY = Family(
    name="janus",
    order="raster",
    sign=("embed_tokens.", "self_attn.q_proj.", "mlp.gate_proj.", "_head.vision_head."),
    variants=VARIANTS,
    grids=((24, 24),),
    config=JanusConfig,
    required=("dim", "n_layer", "n_head", "grid"),
    infer=infer,
    module=Janus,
    condition_module=llama.Vocabulary,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=lambda config: template(config, Words()),
    template=template,
    schedules=default_schedules,
    sampler=lambda _: SamplerDefaults(guidance=5.0, temperature=1.0, top_k=0, top_p=1.0),
    options=(PROMPT_SLOTS,),
    positions="sequence",
    tables=llama.tables,
    tensors=tensors,
    model_types=("multi_modality", "janus"),
    described=described,
)
