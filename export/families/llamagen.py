"""LlamaGen, class-conditional (arXiv 2406.06525): sizes, checkpoint layout, and the model that is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.families.family import Family, Shapes, Size
from arforge.export.layers import Block, RMSNorm, TokenDecoder
from arforge.export.rows import Rows, concatenate
from arforge.runner.bundle import ClassCondition, SamplerDefaults

VARIANTS = {
    "B": Size(12, 12, 768),
    "L": Size(24, 16, 1024),
    "XL": Size(36, 20, 1280),
    "XXL": Size(48, 24, 1536),
    "3B": Size(24, 32, 3200),
}
REQUIRED = ("dim", "n_layer", "n_head", "vocab_size", "num_classes", "grid")


@dataclass(frozen=True)
class Dimensions:
    """Those of the decoder, whatever stands before the image."""

    dim: int
    n_layer: int
    n_head: int
    grid: tuple[int, int]
    vocab_size: int = 16384
    n_kv_head: int | None = None
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.dim // self.n_head

    @property
    def tokens(self) -> int:
        """Rows of the embedding table."""
        return self.vocab_size

    @property
    def caches(self) -> int:
        """Pairs of key and value caches."""
        return self.n_layer

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer: 2/3 of 4 dim, rounded up to a multiple of `multiple_of`."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of

    def problems(self) -> Iterator[str]:
        """What keeps these dimensions from being a model."""
        if self.dim % self.n_head:
            yield f"n_head {self.n_head} does not divide dim {self.dim}"
        if self.n_head % self.kv_heads:
            yield f"n_kv_head {self.kv_heads} does not divide n_head {self.n_head}"
        if self.head_size % 4:
            yield f"head size {self.head_size} (dim / n_head) must be a multiple of 4 for 2-D rotary positions"


@dataclass(frozen=True)
class LlamaGenConfig(Dimensions):
    num_classes: int = 1000

    @property
    def transition_tokens(self) -> int:
        """Learned tokens beyond image and class tokens; PAR has some."""
        return 0

    @property
    def tokens(self) -> int:
        """Image tokens, classes, the null class, transition tokens."""
        return self.first_special + self.transition_tokens

    @property
    def first_class(self) -> int:
        return self.vocab_size

    @property
    def null_class(self) -> int:
        return self.first_class + self.num_classes

    @property
    def first_special(self) -> int:
        return self.null_class + 1


class LlamaGen(TokenDecoder):
    """The decoder. One id space: image tokens [0, vocab), classes [vocab, vocab + classes), then the null class."""

    def __init__(self, config: Dimensions) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.tokens, config.dim)
        self.layers = nn.ModuleList(
            Block(config.dim, config.n_head, config.kv_heads, config.hidden, config.norm_eps)
            for _ in range(config.n_layer)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)


EMBEDDING = "tok_embeddings.weight"
CLASS_EMBEDDING = "cls_embedding.embedding_table.weight"


def checkpoint_shapes(config: LlamaGenConfig) -> Shapes:
    """The tensors of the authors' checkpoints."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaGen(config).state_dict().items()}
    shapes[EMBEDDING] = (config.vocab_size, config.dim)
    shapes[CLASS_EMBEDDING] = (config.num_classes + 1, config.dim)
    return shapes


def parameter(_: LlamaGenConfig, checkpoint: Checkpoint, name: str) -> Rows:
    """A parameter of `LlamaGen` from the authors' checkpoint: the two embedding tables become one."""
    if name == EMBEDDING:
        return concatenate([checkpoint.rows(EMBEDDING), checkpoint.rows(CLASS_EMBEDDING)])
    return checkpoint.rows(name)


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    return {**infer_decoder(shapes, heads), "num_classes": shapes[CLASS_EMBEDDING][0] - 1}


def infer_decoder(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """Those of the decoder alone."""
    vocab_size, dim = shapes[EMBEDDING]
    layers = layer_count(shapes, "layers.")
    n_head = heads(layers, dim)
    key_width = (shapes["layers.0.attention.wqkv.weight"][0] - dim) // 2
    grouped = {} if key_width == dim else {"n_kv_head": key_width * n_head // dim}
    return {
        "dim": dim,
        "n_layer": layers,
        "n_head": n_head,
        "vocab_size": vocab_size,
        **grouped,
        **feed_forward_fields(dim, shapes["layers.0.feed_forward.w1.weight"][0]),
    }


def layer_count(shapes: Shapes, prefix: str) -> int:
    """One more than the largest number behind `prefix`. Raises ValueError if there is none."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix))


def feed_forward_fields(dim: int, hidden: int) -> dict[str, Any]:
    """Fields that give a feed-forward layer of this width: those of the published sizes where they do."""
    narrow = int(2 * 4 * dim / 3)
    for multiple in (256, 128, 64, 32, 16, 8, hidden):
        if -(-narrow // multiple) * multiple == hidden:
            return {} if multiple == 256 else {"multiple_of": multiple}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden + 0.5) / narrow}


def condition(config: LlamaGenConfig) -> ClassCondition:
    return ClassCondition(config.num_classes, config.first_class, config.null_class)


def default_schedules(config: Dimensions) -> list[str]:
    """Next-token, and ZipAR at the windows of its paper that fit."""
    return ["ntp", *(f"zipar:{window}" for window in (16, 12, 8, 4, 2) if window < config.grid[1])]


FAMILY = Family(
    name="llamagen",
    order="raster",
    sign=("cls_embedding.embedding_table.weight",),
    variants=VARIANTS,
    grids=((16, 16), (24, 24), (32, 32)),
    config=LlamaGenConfig,
    required=REQUIRED,
    infer=infer,
    module=LlamaGen,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=condition,
    schedules=default_schedules,
    sampler=lambda _: SamplerDefaults(guidance=2.0, temperature=1.0, top_k=0, top_p=1.0),  # on ImageNet
)
