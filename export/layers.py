"""The blocks that Llama-style image generators share, as plain torch modules.

Every module here is both the reference that tests compare with and the thing that is traced to ONNX.
Parameters keep the names of the authors' checkpoints. Not covered: dropout and weight initialisation,
which only training needs (`examples/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.rows import Values, concatenate

if TYPE_CHECKING:
    from arforge.export.families.family import Configuration

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [rows, kv_heads, slots, head_size]."""


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class HeadNorm(nn.Module):
    """Layer norm of each head, with a scale and a bias a head; [rows, heads, width, head_size] to the same."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(heads, head_size))
        self.bias = nn.Parameter(torch.zeros(heads, head_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight[:, None] + self.bias[:, None]


class Attention(nn.Module):
    """Rotary self-attention over a cache that is filled in the order of generation.

    Without a cache (training) the inputs attend to each other alone, under the same mask. With `head_norms` queries
    and keys are normed before they turn.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, head_norms: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, dim // heads
        self.scale: float | None = None  # of scores; None is that of the head size
        self.q_norm = HeadNorm(heads, self.head_size) if head_norms else nn.Identity()
        self.k_norm = HeadNorm(kv_heads, self.head_size) if head_norms else nn.Identity()
        self.wqkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_size, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor, write_index: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        rows, width, _ = x.shape
        heads = self.wqkv(x).view(rows, width, self.heads + 2 * self.kv_heads, self.head_size)
        query, key, value = heads.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        query, key = rotary.turn(self.q_norm(query)), rotary.turn(self.k_norm(key))
        if cache is not None:
            assert write_index is not None
            key, value = write_cache(cache[0], key, write_index), write_cache(cache[1], value, write_index)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=self.heads != self.kv_heads
        )
        return self.wo(out.transpose(1, 2).flatten(2)), (key, value)


class Block(nn.Module):
    """Attention, then the feed-forward layer, each after a norm; or before it, with `norm_after`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        eps: float,
        *,
        head_norms: bool = False,
        norm_after: bool = False,
    ) -> None:
        super().__init__()
        self.norm_after = norm_after
        self.attention = Attention(dim, heads, kv_heads, head_norms)
        self.feed_forward = FeedForward(dim, hidden)
        self.attention_norm = RMSNorm(dim, eps)
        self.ffn_norm = RMSNorm(dim, eps)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor, write_index: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        if self.norm_after:
            attended, cache = self.attention(x, rotary, mask, write_index, cache)
            x = x + self.attention_norm(attended)
            return x + self.ffn_norm(self.feed_forward(x)), cache
        attended, cache = self.attention(self.attention_norm(x), rotary, mask, write_index, cache)
        x = x + attended
        return x + self.feed_forward(self.ffn_norm(x)), cache


class Rotary:
    """The rotary rows of this step's inputs: turns the pairs of [rows, heads, width, head_size].

    A pair is two neighbours, where they are `interleaved`, or the same place of a head's two halves.
    """

    def __init__(self, cosine: Tensor, sine: Tensor, positions: Tensor, interleaved: bool = True) -> None:
        """`cosine`, `sine`: [table rows, head_size / 2]; `positions`: int64 [rows, width]."""
        self.cosine, self.sine, self.positions, self.interleaved = cosine, sine, positions, interleaved

    def turn(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return torch.onnx.ops.rotary_embedding(
                x, self.cosine, self.sine, self.positions, interleaved=self.interleaved
            )
        # The operator has no gradient, so eager mode spells it out.
        cosine, sine = self.cosine[self.positions][:, None], self.sine[self.positions][:, None]
        first, second = (x[..., 0::2], x[..., 1::2]) if self.interleaved else x.chunk(2, dim=-1)
        turned = first * cosine - second * sine, second * cosine + first * sine
        return torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)


class RotaryDecoder(nn.Module):
    """What every decoder has: its rotary table, as buffers that no checkpoint holds, and the shape of its caches."""

    cosine: Tensor
    sine: Tensor
    interleaved = True  # pairs of a head's numbers that turn together; see `Rotary`

    def __init__(self, config: Configuration) -> None:
        super().__init__()
        self.config = config
        for name, table in self.tables(config).items():
            self.register_buffer(name, table, persistent=False)

    @classmethod
    def tables(cls, config: Any) -> dict[str, Tensor]:
        """The rotary tables, by the names of the buffers."""
        return dict(zip(("cosine", "sine"), rotary_table(config.grid, config.head_size, config.rope_base), strict=True))

    def rotary(self, positions: Tensor) -> Rotary:
        """The rotary rows of these positions, int64 [rows, width]."""
        return Rotary(self.cosine, self.sine, positions, self.interleaved)

    def empty_caches(self, rows: int, slots: int) -> list[Cache]:
        shape = (rows, self.config.kv_heads, slots, 2 * self.cosine.shape[-1])
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(self.config.caches)]


class TokenDecoder(RotaryDecoder):
    """From tokens, and rows of a prompt, to logits of what follows each."""

    tok_embeddings: nn.Embedding
    layers: nn.ModuleList  # blocks
    norm: nn.Module
    output: nn.Module

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        write_index: Tensor | None = None,
        caches: list[Cache] | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """One step. Shapes as in the step graph; returns float32 logits [rows, width, vocab] and the caches.

        Without caches (training) `mask` is [.., width, width] over the inputs themselves.
        """
        x = self.embed(tokens, condition)
        rotary = self.rotary(positions)
        new_caches: list[Any] = []
        for index, layer in enumerate(self.layers):
            x, cache = layer(x, rotary, mask, write_index, caches[index] if caches else None)
            new_caches.append(cache)
        return self.output(self.norm(x)).float(), new_caches

    def embed(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        """[rows, width, dim] of ids [rows, width]; those beyond the table are rows of `condition` [rows, .., dim]."""
        table = self.tok_embeddings
        if condition is None:
            embedded: Tensor = table(tokens)
            return embedded
        beyond = tokens - table.num_embeddings
        own = table(tokens.clamp(max=table.num_embeddings - 1))
        given = condition.gather(1, beyond.clamp(min=0)[..., None].expand_as(own))
        return torch.where(beyond[..., None] < 0, own, given)


HEAD_AXES = {"wqkv": 0, "to_q": 0, "to_k": 0, "to_v": 0, "wo": 1, "proj": 1}
"""The axis of a projection's weight, by the projection's name, that runs over heads."""

HEAD_MULTIPLE = 8  # of head sizes that TensorRT's fused attention takes


def padded_head(head_size: int) -> int:
    """The head size of exported graphs and their caches."""
    return -(-head_size // HEAD_MULTIPLE) * HEAD_MULTIPLE


def pad_weight(name: str, weight: Tensor, head_size: int, interleaved: bool = True) -> Tensor:
    """The parameter, or rotary table, `name` with zeros behind each head up to the padded size; others as they are.

    Where pairs are not interleaved the zeros stand behind each half of a head, so that it stays two halves.
    """
    more = padded_head(head_size) - head_size
    axis = HEAD_AXES.get(name.rsplit(".", 2)[-2]) if name.endswith(".weight") else None
    if more and name in ("cosine", "sine"):
        return F.pad(weight, (0, more // 2))
    if not more or axis is None:
        return weight
    parts = 1 if interleaved else 2
    heads = weight.unflatten(axis, (-1, head_size // parts))
    after = heads.dim() - axis - 2  # dimensions behind the head's own, which `pad` counts from the last
    return F.pad(heads, (0, 0) * after + (0, more // parts)).flatten(axis, axis + 1)


def pad_values(name: str, values: Values, head_size: int, interleaved: bool = True) -> Values:
    """`pad_weight` of a parameter that may come in rows."""
    if isinstance(values, Tensor):
        return pad_weight(name, values, head_size, interleaved)
    more = padded_head(head_size) - head_size
    axis = HEAD_AXES.get(name.rsplit(".", 2)[-2]) if name.endswith(".weight") else None
    if not more or axis is None:
        return values
    if axis == 1:
        width = values.shape[1] // head_size * padded_head(head_size)
        return values.map(lambda rows: pad_weight(name, rows, head_size, interleaved), width)
    parts = 1 if interleaved else 2
    step, zeros = head_size // parts, torch.zeros(more // parts, *values.shape[1:], dtype=values.dtype)
    heads = (values[first : first + step] for first in range(0, values.count, step))
    return concatenate([part for head in heads for part in (head, zeros)])


def pad_heads(module: nn.Module, head_size: int) -> nn.Module:
    """Give a decoder heads of the padded size, in place; scores keep the true size's scale, so results stay.

    Zeros behind the queries and keys add nothing to a score, nor do those behind the values to the output, whose
    projection has zeros there too.
    """
    if padded_head(head_size) == head_size:
        return module
    interleaved = bool(getattr(module, "interleaved", True))
    for path, part in module.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            padded = pad_weight(f"{path}.{name}", parameter.detach(), head_size, interleaved)
            setattr(part, name, nn.Parameter(padded))
        for name, table in list(part.named_buffers(recurse=False)):
            setattr(part, name, pad_weight(name, table, head_size, interleaved))
        if hasattr(part, "scale"):
            part.scale, part.head_size = head_size**-0.5, padded_head(head_size)
    return module


def rotary_table(grid: tuple[int, int], head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, float32 [1 + cells, head_size / 2], of LlamaGen's 2-D rotary positions.

    Row 0 is "no position": cosine and sine are both zero, as the published models treat condition tokens.
    Row 1 + cell turns the first half of the pairs by the cell's row, the second half by its column.
    """
    height, width = grid
    half = head_size // 2
    frequencies = 1.0 / (base ** (torch.arange(0, half, 2)[: half // 2].float() / half))
    rows = torch.outer(torch.arange(height), frequencies)[:, None].expand(height, width, -1)
    columns = torch.outer(torch.arange(width), frequencies)[None].expand(height, width, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    none = torch.zeros(1, half)
    return torch.cat([none, torch.cos(angles)]), torch.cat([none, torch.sin(angles)])


def line_table(rows: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, float32 [rows, head_size / 2], of 1-D rotary positions: row p turns by p times a speed.

    In float32 throughout, as the authors of Llama-style models make them: at high positions that shows.
    """
    speeds = 1.0 / (base ** (torch.arange(0, head_size, 2).float() / head_size))
    angles = torch.outer(torch.arange(rows).float(), speeds)
    return torch.cos(angles), torch.sin(angles)


def write_cache(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Write `update` [rows, heads, width, size] to the slots `write_index` [rows] onward of `cache`.

    In a traced graph this is ONNX TensorScatter, which the runtimes do in place.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache, update, write_index),
            {"axis": 2, "mode": "linear"},
            dtype=cache.dtype,
            shape=cache.shape,
            version=24,
        )
    slots = write_index[:, None] + torch.arange(update.shape[2], device=update.device)
    return cache.scatter(2, slots[:, None, :, None].expand_as(update), update)
