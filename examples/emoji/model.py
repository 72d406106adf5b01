"""LlamaGen t2i at small size, with its text encoder, for training and sampling in torch.

Caption features stand directly before the image tokens, at positions whose rotary rows are zero; padded ones are zeros
that nothing sees. The authors give captions 120 places; places that are all padding change nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from t5 import T5Config, T5Encoder
from torch import Tensor, nn

from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.families.llamagen_t2i import CaptionProjection
from arforge.export.layers import Attention, Block, Cache, RMSNorm, Rotary, RotaryDecoder

PLACES = 120  # rows of the unconditional features
TEXT = T5Config()
IMAGE = LlamaGenConfig(dim=256, n_layer=6, n_head=4, grid=(10, 10), vocab_size=1024, num_classes=0)


class CaptionEmbedding(nn.Module):
    """Features into the decoder's width; `uncond_embedding` stands for a caption that is not there."""

    uncond_embedding: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(width, dim)
        fixed = torch.randn(PLACES, width, generator=torch.Generator().manual_seed(0)) / width**0.5
        self.register_buffer("uncond_embedding", fixed.half().float())  # float16 keeps it as it is

    def forward(self, features: Tensor) -> Tensor:
        return self.cap_proj(features)


class PlainAttention(Attention):
    """Without a cache written out: on CPUs that is the faster way to train."""

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor, write_index: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        if cache is not None:
            return super().forward(x, rotary, mask, write_index, cache)
        widths = [self.heads, self.kv_heads, self.kv_heads]
        query, key, value = self.wqkv(x).unflatten(2, (sum(widths), -1)).transpose(1, 2).split(widths, dim=1)
        query, key = rotary.turn(query), rotary.turn(key)
        if self.heads != self.kv_heads:
            key, value = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (key, value))
        scores = (query @ key.transpose(2, 3)) * self.head_size**-0.5
        out = torch.softmax(scores + torch.where(mask, 0.0, -1e9).to(scores.dtype), dim=-1) @ value
        return self.wo(out.transpose(1, 2).flatten(2)), (key, value)


class TextToImage(RotaryDecoder):
    def __init__(self, config: LlamaGenConfig, width: int) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.cls_embedding = CaptionEmbedding(width, config.dim)
        self.layers = nn.ModuleList(
            Block(config.dim, config.n_head, config.kv_heads, config.hidden, config.norm_eps)
            for _ in range(config.n_layer)
        )
        for layer in self.layers:
            layer.attention = PlainAttention(config.dim, config.n_head, config.kv_heads)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        for part in (self.cls_embedding.cap_proj.fc1, self.cls_embedding.cap_proj.fc2):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)

    def forward(self, features: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Logits [rows, cells, vocab] of the cells after `tokens`, int64 [rows, cells - 1].

        `features`: [rows, places, width], `mask`: bool [rows, places], False at the padding on the left.
        """
        places, width = mask.shape[1], mask.shape[1] + tokens.shape[1]
        prefix = self.cls_embedding(features * mask[..., None])
        x = torch.cat([prefix, self.tok_embeddings(tokens)], dim=1)
        rotary = self.rotary(positions(places, tokens.shape[1]).expand(len(mask), -1))
        seen = visible(mask, width)
        for layer in self.layers:
            x, _ = layer(x, rotary, seen, None, None)
        return self.output(self.norm(x[:, places - 1 :]))

    def step(
        self, x: Tensor, place: Tensor, seen: Tensor, first: int, caches: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """Logits [rows, vocab] after the last of x, [rows, width, dim], which goes to the slots from `first` on."""
        rotary, new = self.rotary(place.expand(len(x), -1)), []
        where = torch.full((len(x),), first)
        for layer, cache in zip(self.layers, caches, strict=True):
            x, grown = layer(x, rotary, seen, where, cache)
            new.append(grown)
        return self.output(self.norm(x[:, -1])).float(), new

    @torch.no_grad()
    def sample(
        self, features: Tensor, mask: Tensor, guidance: float, generators: Sequence[torch.Generator], top_k: int = 0
    ) -> Tensor:
        """Tokens int64 [rows, cells], next-token; each row draws from its own generator."""
        guided = guidance > 1
        if guided:
            features = torch.cat([features, self.unconditional(mask)])
            mask = torch.cat([mask, mask])
        rows, places, cells = len(mask), mask.shape[1], self.config.cells
        seen = visible(mask, places + cells - 1)
        caches = self.empty_caches(rows, places + cells - 1)
        x = self.cls_embedding(features * mask[..., None])
        place = positions(places, cells)
        first, chosen = 0, []
        for _ in range(cells):
            slots = slice(first, first + x.shape[1])
            logits, caches = self.step(x, place[slots], seen[:, :, slots], first, caches)
            first = slots.stop
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance * (conditional - unconditional)
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            odds = torch.softmax(logits, dim=-1)
            token = torch.cat([torch.multinomial(o, 1, generator=g) for o, g in zip(odds, generators, strict=True)])
            chosen.append(token)
            x = self.tok_embeddings(token.repeat(2) if guided else token)[:, None]
        return torch.stack(chosen, dim=1)

    def unconditional(self, mask: Tensor) -> Tensor:
        """Features as `mask` has places, of a caption that was dropped; its length stays."""
        return self.cls_embedding.uncond_embedding[PLACES - mask.shape[1] :].expand(len(mask), -1, -1)


def positions(places: int, tokens: int) -> Tensor:
    """Rows of the rotary table, int64 [places + tokens]: 0 for the caption, then the cells in order."""
    return torch.cat([torch.zeros(places, dtype=torch.int64), 1 + torch.arange(tokens)])


def visible(mask: Tensor, width: int) -> Tensor:
    """Who sees whom, bool [rows, 1, width, width]: causal, no padding, and everyone itself."""
    seen = F.pad(mask, (0, width - mask.shape[1]), value=True)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return (causal & seen[:, None] | torch.eye(width, dtype=torch.bool))[:, None]


def pad_left(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids int64 [rows, longest] with zeros on the left, and where they are true, bool."""
    longest = max(len(row) for row in ids)
    padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in ids])
    return padded, mask


class Generator(nn.Module):
    """Text encoder and decoder, trained as one."""

    def __init__(self, text: T5Config = TEXT, image: LlamaGenConfig = IMAGE) -> None:
        super().__init__()
        self.text = T5Encoder(text)
        self.image = TextToImage(image, text.d_model)

    def forward(self, ids: Tensor, mask: Tensor, tokens: Tensor, dropped: Tensor) -> Tensor:
        """Logits [rows, cells, vocab]; `dropped`, bool [rows], are the rows that lose their caption."""
        features = self.text(ids, mask)
        features = torch.where(dropped[:, None, None], self.image.unconditional(mask), features)
        return self.image(features, mask, tokens)

    @torch.no_grad()
    def generate(self, ids: Sequence[Sequence[int]], guidance: float, seeds: Sequence[int], **options: Any) -> Tensor:
        """Tokens int64 [rows, cells] of captions' ids, one seed a row."""
        padded, mask = pad_left(ids)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.image.sample(self.text(padded, mask), mask, guidance, generators, **options)
