"""The Llama-style decoder that multimodal models share, cut to what draws images.

Positions are places in line. The table of a step holds the image tokens and, of models that end rows by a token of
their own, that token; all other words of the vocabulary reach it as rows of a prompt. The head
gives image tokens alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.families.family import Shapes
from arforge.export.families.llamagen import Dimensions, layer_count
from arforge.export.layers import Block, RMSNorm, TokenDecoder, line_table, padded_head
from arforge.export.model_folder import Description
from arforge.export.rows import Values, concatenate

MOST_SLOTS = 1024  # of prompts, where nobody asks for another number
FEW_SLOTS = 256  # where the positions that a model says it was trained with leave none beside its images

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
OUTSIDE = {"norm.weight": "norm.weight", "output.weight": HEAD}
INSIDE = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
"""The checkpoints' names of the module's parameters, where one is one: outside the layers, and inside one."""


@dataclass(frozen=True)
class LlamaDimensions(Dimensions):
    """Those of the decoder, and where its image tokens stand among the words of the whole vocabulary."""

    words: int = 65536  # of the vocabulary: rows of the checkpoint's embedding
    max_positions: int = 4096  # of a sequence, as trained
    prompt_slots: int | None = None

    @property
    def row_ends(self) -> int:
        """Tokens that end a row of the grid, of a whole image."""
        return 0

    @property
    def slots(self) -> int:
        """Tokens of the longest prompt: what is asked for, or what the positions leave, up to MOST_SLOTS."""
        return self.prompt_slots or (min(MOST_SLOTS, self.left) if self.left > 0 else FEW_SLOTS)

    @property
    def left(self) -> int:
        """Positions that the model was trained with beyond an image's."""
        return self.max_positions - self.cells - self.row_ends

    @property
    def position_rows(self) -> int:
        """Of the rotary table."""
        return self.slots + self.cells + self.row_ends

    def problems(self) -> Iterator[str]:
        if self.dim % self.n_head:
            yield f"n_head {self.n_head} does not divide dim {self.dim}"
        if self.n_head % self.kv_heads:
            yield f"n_kv_head {self.kv_heads} does not divide n_head {self.n_head}"
        if self.head_size % 2:
            yield f"head size {self.head_size} (dim / n_head) must be even: its halves turn together"
        if self.prompt_slots and 0 < self.left < self.prompt_slots:
            yield (
                f"prompt_slots {self.prompt_slots} are more than the {self.left} positions that the model was trained "
                "with beyond an image's"
            )


@dataclass(frozen=True)
class RowDimensions(LlamaDimensions):
    """Of a model whose image tokens are words of the vocabulary, one behind another, as is the one that ends a row."""

    first_image: int = 4
    row_end: int = 8803

    @property
    def tokens(self) -> int:
        return self.vocab_size + 1

    @property
    def row_ends(self) -> int:
        return self.grid[0]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.first_image + self.vocab_size > self.words:
            yield (
                f"image tokens {self.first_image} to {self.first_image + self.vocab_size - 1} are beyond the "
                f"vocabulary of {self.words}"
            )
        if self.row_end >= self.words:
            yield f"the token {self.row_end}, which ends a row, is beyond the vocabulary of {self.words}"


class Llama(TokenDecoder):
    interleaved = False

    def __init__(
        self,
        config: LlamaDimensions,
        *,
        head: nn.Module | None = None,
        head_norms: bool = False,
        norm_after: bool = False,
    ) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.tokens, config.dim)
        self.layers = nn.ModuleList(
            Block(
                config.dim,
                config.n_head,
                config.kv_heads,
                config.hidden,
                config.norm_eps,
                head_norms=head_norms,
                norm_after=norm_after,
            )
            for _ in range(config.n_layer)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = head or nn.Linear(config.dim, config.vocab_size, bias=False)

    @classmethod
    def tables(cls, config: LlamaDimensions) -> dict[str, Tensor]:
        return tables(config)


def tables(config: LlamaDimensions) -> dict[str, Tensor]:
    """The rotary tables of places in line, by the names of the module's buffers."""
    found = line_table(config.position_rows, config.head_size, config.rope_base)
    return dict(zip(("cosine", "sine"), found, strict=True))


class Vocabulary(nn.Module):
    """From the ids of prompts [prompts, length] to rows of the condition [prompts, length, dim]."""

    def __init__(self, config: LlamaDimensions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.words, config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embed_tokens(ids)
        return rows


def checkpoint_shapes(config: LlamaDimensions) -> Shapes:
    """The tensors of a checkpoint, named as in transformers' Llama without what stands before its parts."""
    dim, hidden = config.dim, config.hidden
    widths = {"q": config.n_head, "k": config.kv_heads, "v": config.kv_heads}
    shapes: Shapes = {EMBEDDING: (config.words, dim)}
    for layer in range(config.n_layer):
        at = f"layers.{layer}."
        for part, heads in widths.items():
            shapes[f"{at}self_attn.{part}_proj.weight"] = (heads * config.head_size, dim)
        shapes[f"{at}self_attn.o_proj.weight"] = (dim, dim)
        shapes |= {f"{at}mlp.{part}_proj.weight": (hidden, dim) for part in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (dim, hidden)
        shapes |= {f"{at}{part}_layernorm.weight": (dim,) for part in ("input", "post_attention")}
    return {**shapes, "norm.weight": (dim,), HEAD: (config.words, dim)}


def parameter(_: Dimensions, checkpoint: Checkpoint, name: str) -> Values:
    """A parameter of the layers or of the last norm from a checkpoint with the tensors of `checkpoint_shapes`."""
    layer = re.fullmatch(r"(layers\.\d+\.)(.+)", name)
    if layer is None:
        return checkpoint.rows(OUTSIDE[name])
    at, part = layer.groups()
    if part == "attention.wqkv.weight":
        return concatenate([checkpoint.rows(f"{at}self_attn.{each}_proj.weight") for each in "qkv"])
    return checkpoint.rows(at + INSIDE[part])


def row_parameter(config: RowDimensions, checkpoint: Checkpoint, name: str) -> Values:
    """Of a model whose image tokens are words: of its two tables only these and the token that ends a row."""
    images = slice(config.first_image, config.first_image + config.vocab_size)
    if name == "tok_embeddings.weight":
        table = checkpoint.rows(EMBEDDING)
        return concatenate([table[images], table[config.row_end : config.row_end + 1]])
    if name == "output.weight":
        return checkpoint.rows(HEAD)[images]
    return parameter(config, checkpoint, name)


def infer(shapes: Shapes, config: type[Dimensions], heads: Any) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`), of a model of the class `config`."""
    words, dim = shapes[EMBEDDING]
    layers = layer_count(shapes, "layers.")
    n_head = heads(layers, dim)
    key_width = shapes["layers.0.self_attn.k_proj.weight"][0]
    return {
        "dim": dim,
        "n_layer": layers,
        "n_head": n_head,
        "words": words,
        **kv_field(key_width * n_head // dim, n_head, config),
        **hidden_fields(dim, shapes["layers.0.mlp.gate_proj.weight"][0], config),
    }


def described(description: Description, config: type[Dimensions], **usual: Any) -> dict[str, Any]:
    """The dimensions that a configuration in transformers' manner tells, with `usual` values of what it leaves out.

    Raises CheckpointError for what the decoder here does not have.
    """
    numbers = {
        name: description.whole(name, usual.get(name))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    }
    dim, n_head = numbers["hidden_size"], numbers["num_attention_heads"]
    kv_heads = description.whole("num_key_value_heads", usual.get("num_key_value_heads", n_head))
    description.require("hidden_act", "silu")
    description.require("rope_scaling", None)
    for name in ("attention_bias", "mlp_bias"):
        description.require(name, only=False)
    description.require("head_dim", dim // n_head)
    rotary = description.part("rope_parameters")
    rotary.require("rope_type", "default")
    base = description.number("rope_theta", rotary.number("rope_theta", usual["rope_theta"]))
    return {
        "dim": dim,
        "n_layer": numbers["num_hidden_layers"],
        "n_head": n_head,
        "words": numbers["vocab_size"],
        "norm_eps": description.number("rms_norm_eps", usual["rms_norm_eps"]),
        "rope_base": base,
        "max_positions": description.whole("max_position_embeddings", usual["max_position_embeddings"]),
        **kv_field(kv_heads, n_head, config),
        **hidden_fields(dim, numbers["intermediate_size"], config),
    }


def check_image(config: LlamaDimensions) -> Iterator[str]:
    """What keeps images of this grid from being drawn: positions that the model was not trained with."""
    if config.left < 1:
        yield (
            f"grid {config.grid[0]}x{config.grid[1]}: its {config.cells + config.row_ends} tokens leave a prompt none "
            f"of the {config.max_positions} positions that the model was trained with"
        )


def default_of(config: type[Dimensions], name: str) -> Any:
    return config.__dataclass_fields__[name].default


def kv_field(kv_heads: int, n_head: int, config: type[Dimensions]) -> dict[str, int]:
    """The field of grouped heads, where its default does not say as many."""
    return {} if (default_of(config, "n_kv_head") or n_head) == kv_heads else {"n_kv_head": kv_heads}


def hidden_fields(dim: int, hidden: int, config: type[Dimensions]) -> dict[str, Any]:
    """The fields that give a feed-forward layer of this width, where their defaults do not."""
    usual = config(dim=dim, n_layer=1, n_head=1, grid=(1, 1))
    if usual.hidden == hidden:
        return {}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden + 0.5) / int(2 * 4 * dim / 3)}


def check_heads(config: LlamaDimensions) -> Iterator[str]:
    """What keeps heads from being normed: statistics of a padded head are others."""
    if padded_head(config.head_size) != config.head_size:
        yield f"head size {config.head_size} (dim / n_head) must be a multiple of 8: its queries and keys are normed"


PARTS = ("embed_tokens.", "layers.", "norm.", "lm_head.")


def decoder_tensors(names: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """A checkpoint's names of a decoder's tensors, by those of `checkpoint_shapes`; what stands before may differ."""
    found: dict[str, str] = {}
    for name in names:
        for prefix in (*prefixes, ""):
            plain = name.removeprefix(prefix)
            if name.startswith(prefix) and plain.startswith(PARTS):
                found.setdefault(plain, name)
                break
    return found
