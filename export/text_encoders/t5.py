"""The encoder of T5, as text-to-image models use it: from ids and their mask to a row of features for each token.

T5, T5 1.1, flan-T5 and mT5 differ in their configuration alone. Not covered: the decoder, dropout, and UMT5, each of
whose layers has a position bias of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.layers import RMSNorm
from arforge.export.rows import Rows, Values
from arforge.export.text_encoders.t5_config import T5Config

TITLE = "T5 encoder"
SIGN = ("encoder.block.", "SelfAttention.relative_attention_bias.")  # parts of tensor names, all of them
TABLES = ("shared.weight", "encoder.embed_tokens.weight")  # names of the one table of words
BUCKETS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
DISTANCES = "encoder.distance_bias.weight"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class T5Encoder(nn.Module):
    """Parameters have the names of the hub's, but for the position bias: of each distance, not of each bucket."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 ids and mask (1, or 0 for padding) [prompts, length] to float32 features [prompts, length, width]."""
        return self.encoder(self.shared(ids).to(torch.float32), mask)


class Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.farthest = config.relative_attention_max_distance
        self.distance_bias = nn.Embedding(2 * self.farthest + 1, config.num_heads)
        self.block = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = self.bias(mask)
        for block in self.block:
            x = block(x, bias)
        return norm(self.final_layer_norm, x)

    def bias(self, mask: Tensor) -> Tensor:
        """What is added to scores, float32 [prompts, heads, length, length]: of distances, and against padding."""
        place = torch.arange(mask.shape[1], device=mask.device)
        distance = (place - place[:, None]).clamp(-self.farthest, self.farthest) + self.farthest
        bias = self.distance_bias(distance).permute(2, 0, 1)[None].to(torch.float32)
        # not infinity: a prompt that is padding alone would give no number
        return torch.where(mask[:, None, None, :] != 0, bias, torch.finfo(torch.float32).min)


class Block(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.SelfAttention = Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(norm(self.layer_norm, x), bias)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config) if config.gated else FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(norm(self.layer_norm, x))


class Attention(nn.Module):
    """Every token sees every other; scores are not scaled."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.q, self.k, self.v = (Projection(config.d_model, inner) for _ in range(3))
        self.o = Projection(inner, config.d_model)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        query, key, value = heads
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        # a copy, since passes of the tracer differ on how `out` lies in memory; the graph has none
        return self.o(out.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = Projection(config.d_model, config.d_ff)
        self.wo = Projection(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.activation(self.wi(x)))


class GatedFeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (Projection(config.d_model, config.d_ff) for _ in range(2))
        self.wo = Projection(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.activation(self.wi_0(x)) * self.wi_1(x))


class Projection(nn.Module):
    """A linear map that computes in float32, whatever its weights are stored as."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(made, given))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t().to(torch.float32)  # in this order, so that a graph's weights are stored transposed


def norm(module: RMSNorm, x: Tensor) -> Tensor:
    """The norm in float32, whatever its weights are stored as."""
    return F.rms_norm(x, module.weight.shape, module.weight.to(torch.float32), module.eps)


def checkpoint_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """The tensors of an encoder's checkpoint, by name."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in T5Encoder(config).state_dict().items()}
    del shapes[DISTANCES]
    return {**shapes, BUCKETS: (config.relative_attention_num_buckets, config.num_heads)}


def parameter(config: T5Config, tensors: Callable[[str], Rows], name: str) -> Values:
    """The parameter `name` of `T5Encoder` from the tensors of a checkpoint."""
    if name == DISTANCES:
        return tensors(BUCKETS).tensor()[buckets(config)]
    return tensors(name)


def buckets(config: T5Config) -> Tensor:
    """The bucket of each distance from a query to a key, int64 [2 · farthest + 1], from -farthest on.

    Half of the buckets are of keys behind the query; of each half, half are of one distance, the others grow by a
    factor. In float32, as the models were trained: a few distances would fall otherwise in float64.
    """
    half = config.relative_attention_num_buckets // 2
    single, farthest = half // 2, config.relative_attention_max_distance
    distance = torch.arange(-farthest, farthest + 1)
    size = distance.abs()
    grown = torch.log(size.clamp(min=1).to(torch.float32) / single) / math.log(farthest / single) * (half - single)
    wide = (single + grown.to(torch.int64)).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(size < single, size, wide)


def encoder_tensors(names: Mapping[str, object]) -> dict[str, str]:
    """By the names of `checkpoint_shapes`, those in a checkpoint of encoder and decoder, or of the encoder alone."""
    own = {name: name for name in names if name.startswith("encoder.") and name not in TABLES}
    table = next((name for name in TABLES if name in names), None)
    return own if table is None else {**own, TABLES[0]: table}
