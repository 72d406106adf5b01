"""A small T5 encoder, for training: flan-t5's maths and the hub's tensor names, so that other libraries read it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class T5Config:
    """The fields of the hub's config.json."""

    vocab_size: int = 2000
    d_model: int = 192
    d_kv: int = 32
    num_heads: int = 6
    d_ff: int = 384
    num_layers: int = 2
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def as_json(self) -> dict[str, Any]:
        """What goes into config.json."""
        return asdict(self) | {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": False,
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
        }


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)
        nn.init.normal_(self.shared.weight, std=0.3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features [rows, tokens, d_model] of ids int64 [rows, tokens]; `mask`, bool, is False at padding.

        Positions are relative, so padding may be on either side. Features of padding are not zero.
        """
        return self.encoder(self.shared(ids), mask)


class Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, first=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = Norm(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first: Any = self.block[0]
        bias = first.layer[0].SelfAttention.bias(x.shape[1]) + torch.where(mask, 0.0, -1e9)[:, None, None]
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class Block(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, first), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(config, first)
        self.layer_norm = Norm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = Norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Attention(nn.Module):
    """Scores are not scaled; the first block's holds the bias by distance that all use."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.config = config
        self.q, self.k, self.v = (linear(config.d_model, inner) for _ in range(3))
        self.o = linear(inner, config.d_model)
        nn.init.normal_(self.q.weight, std=(config.d_model * config.d_kv) ** -0.5)
        if first:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=0.1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (self.config.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        weights = torch.softmax((query @ key.transpose(2, 3)).float() + bias, dim=-1).to(value.dtype)
        return self.o((weights @ value).transpose(1, 2).flatten(2))

    def bias(self, tokens: int) -> Tensor:
        """Float [1, heads, tokens, tokens]."""
        places = torch.arange(tokens)
        table = buckets(places[None] - places[:, None], self.config)
        return self.relative_attention_bias(table).permute(2, 0, 1)[None]


class GatedFeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = linear(config.d_model, config.d_ff), linear(config.d_model, config.d_ff)
        self.wo = linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class Norm(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=inputs**-0.5)
    return made


def buckets(distance: Tensor, config: T5Config) -> Tensor:
    """The bucket of each distance, key's place less query's, int64: half for either sign, far ones by logarithm."""
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=1).float() / exact
    scale = (half - exact) / math.log(config.relative_attention_max_distance / exact)
    logarithmic = (exact + (torch.log(far) * scale).long()).clamp(max=half - 1)
    return half * (distance > 0) + torch.where(distance.abs() < exact, distance.abs(), logarithmic)
