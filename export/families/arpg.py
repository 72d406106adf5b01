"""ARPG, random-order parallel decoding (arXiv 2503.10568): sizes, checkpoint layout, and the model that is traced.

Half the layers attend over the known tokens and are normed once into shared keys and values; the other half are
cross-attention from queries, which are the mask token at the rotary positions of the cells to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llamagen
from arforge.export.families.family import Family, Shapes, Size
from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.layers import Cache, FeedForward, RMSNorm, Rotary, RotaryDecoder, write_cache
from arforge.export.rows import Rows
from arforge.runner.bundle import SamplerDefaults

VARIANTS = {name: llamagen.VARIANTS[name] for name in ("L", "XL", "XXL")}
GUIDANCE = {"L": 4.5, "XL": 6.0, "XXL": 7.5}  # of the authors' results at 64 steps, where it rises linearly to this
OTHER_GUIDANCE = 4.0  # what their sampler takes where none is given


@dataclass(frozen=True)
class ARPGConfig(LlamaGenConfig):
    """One id space: image tokens [0, vocab), the mask, classes from vocab + 1, the null class, one unused."""

    @property
    def mask_token(self) -> int:
        return self.vocab_size

    @property
    def first_class(self) -> int:
        return self.vocab_size + 1

    @property
    def tokens(self) -> int:
        return self.null_class + 2

    @property
    def caches(self) -> int:
        """One a self-attention layer, and the shared one."""
        return self.n_layer // 2 + 1

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.n_layer % 2:
            yield f"n_layer {self.n_layer} must be even: half the layers are cross-attention"
        if self.kv_heads != self.n_head:
            yield "n_kv_head must be n_head: this family has no grouped heads"


class ARPG(RotaryDecoder):
    def __init__(self, config: ARPGConfig) -> None:
        super().__init__(config)
        self.mask_token = config.mask_token
        self.embeddings = nn.Embedding(config.tokens, config.dim)
        self.layers = TwoPass(config)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        query_positions: Tensor,
        query_mask: Tensor,
        write_index: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """One step: float32 logits [rows, queries, vocab] and the caches, the shared one last.

        `query_mask` [.., queries or 1, slots]: which known tokens each query sees; queries do not see each other.
        """
        known = self.rotary(positions)
        asked = self.rotary(query_positions)
        queries = self.embeddings(torch.full_like(query_positions, self.mask_token))
        x, written = self.layers(self.embeddings(tokens), queries, known, asked, mask, query_mask, write_index, caches)
        return self.head(self.norm(x)).float(), written


class TwoPass(nn.Module):
    def __init__(self, config: ARPGConfig) -> None:
        super().__init__()
        half = config.n_layer // 2
        self.heads = config.n_head
        self.self_dec = nn.ModuleList(SelfDecoder(config) for _ in range(half))
        self.cross_dec = nn.ModuleList(CrossDecoder(config) for _ in range(half))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.to_k = nn.Linear(config.dim, config.dim, bias=False)
        self.to_v = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self,
        x: Tensor,
        queries: Tensor,
        known: Rotary,
        asked: Rotary,
        mask: Tensor,
        query_mask: Tensor,
        write_index: Tensor | None,
        caches: list[Cache] | None,
    ) -> tuple[Tensor, list[Cache]]:
        written: list[Any] = []
        for index, layer in enumerate(self.self_dec):
            x, cache = layer(x, known, mask, write_index, caches[index] if caches else None)
            written.append(cache)
        x = self.norm(x)
        key, value = known.turn(split_heads(self.to_k(x), self.heads)), split_heads(self.to_v(x), self.heads)
        shared = append(key, value, write_index, caches[-1] if caches else None)
        for layer in self.cross_dec:
            queries = layer(queries, asked, query_mask, shared)
        return queries, [*written, shared]


class SelfDecoder(nn.Module):
    def __init__(self, config: ARPGConfig) -> None:
        super().__init__()
        self.attn = Projections(config, ("to_q", "to_k", "to_v", "proj"))
        self.ffn = FeedForward(config.dim, config.hidden)
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor, write_index: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        attn, heads, normed = self.attn, self.attn.heads, self.attn_norm(x)
        query, key = (rotary.turn(split_heads(project(normed), heads)) for project in (attn.to_q, attn.to_k))
        cache = append(key, split_heads(attn.to_v(normed), heads), write_index, cache)
        attended = F.scaled_dot_product_attention(query, *cache, attn_mask=mask, scale=attn.scale)
        x = x + attn.proj(merge_heads(attended))
        return x + self.ffn(self.ffn_norm(x)), cache


class CrossDecoder(nn.Module):
    def __init__(self, config: ARPGConfig) -> None:
        super().__init__()
        self.attn = Projections(config, ("to_q", "proj"))
        self.ffn = FeedForward(config.dim, config.hidden)
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor, shared: Cache) -> Tensor:
        attn = self.attn
        query = rotary.turn(split_heads(attn.to_q(self.attn_norm(x)), attn.heads))
        attended = F.scaled_dot_product_attention(query, *shared, attn_mask=mask, scale=attn.scale)
        x = x + attn.proj(merge_heads(attended))
        return x + self.ffn(self.ffn_norm(x))


class Projections(nn.Module):
    """The square matrices of an attention, by the names that the checkpoints use; cross-attention has two."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    proj: nn.Linear

    def __init__(self, config: ARPGConfig, names: tuple[str, ...]) -> None:
        super().__init__()
        self.heads, self.head_size = config.n_head, config.head_size
        self.scale: float | None = None  # of scores; None is that of the head size
        for name in names:
            self.add_module(name, nn.Linear(config.dim, config.dim, bias=False))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[rows, width, dim] to [rows, heads, width, head_size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def append(key: Tensor, value: Tensor, write_index: Tensor | None, cache: Cache | None) -> Cache:
    """The cache with these entries written; without one (training) the entries alone."""
    if cache is None:
        return key, value
    assert write_index is not None
    return write_cache(cache[0], key, write_index), write_cache(cache[1], value, write_index)


def checkpoint_shapes(config: ARPGConfig) -> Shapes:
    """The tensors of the authors' checkpoints."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in ARPG(config).state_dict().items()}


def parameter(_: ARPGConfig, checkpoint: Checkpoint, name: str) -> Rows:
    """A parameter of `ARPG` from the authors' checkpoint."""
    return checkpoint.rows(name)


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    tokens, dim = shapes["embeddings.weight"]
    vocab_size = shapes["head.weight"][0]
    layers = 2 * llamagen.layer_count(shapes, "layers.self_dec.")
    return {
        "dim": dim,
        "n_layer": layers,
        "n_head": heads(layers, dim),
        "vocab_size": vocab_size,
        "num_classes": tokens - vocab_size - 3,  # the mask, the null class and one that nothing uses
        **llamagen.feed_forward_fields(dim, shapes["layers.self_dec.0.ffn.w1.weight"][0]),
    }


def default_schedules(config: ARPGConfig) -> list[str]:
    """The paper's 64 and 32 steps, or a quarter and an eighth of the cells of a smaller grid."""
    return [f"arpg:{max(1, min(steps, config.cells * steps // 256))}" for steps in (64, 32)]


def default_sampler(config: ARPGConfig) -> SamplerDefaults:
    """The authors', who guide larger models more."""
    size = Size(config.n_layer, config.n_head, config.dim)
    guidance = next((GUIDANCE[name] for name, known in VARIANTS.items() if known == size), OTHER_GUIDANCE)
    return SamplerDefaults(guidance, temperature=1.0, top_k=0, top_p=1.0)


FAMILY = Family(
    name="arpg",
    order="random",
    sign=("layers.self_dec.0.",),
    variants=VARIANTS,
    grids=((16, 16),),
    config=ARPGConfig,
    required=llamagen.REQUIRED,
    infer=infer,
    module=ARPG,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=llamagen.condition,
    schedules=default_schedules,
    sampler=default_sampler,
    queries=True,
)
