"""The published decoding of LlamaGen (arXiv 2406.06525) and ZipAR (arXiv 2412.04062), in the plainest torch there is.

It shares nothing with arforge: the cache is addressed by raster position (slot 0 the class token, slot 1 + cell a
cell), starts filled with zeros, and every input sees all slots up to its own, written or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int64]


class Decoder:
    """A checkpoint's weights, and the cache of one generation."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        heads: int,
        grid: tuple[int, int],
        kv_heads: int | None = None,
        eps: float = 1e-5,
        base: float = 10000.0,
    ) -> None:
        self.weights = {name: value.float() for name, value in weights.items()}
        self.heads, self.kv_heads, self.grid, self.eps = heads, kv_heads or heads, grid, eps
        self.size = self.weights["tok_embeddings.weight"].shape[1] // heads
        self.layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        self.turns = self._turns(base)
        self.before = 0  # slots of a prompt, before the condition's
        self.seen: Tensor | None = None  # which of all slots a row may see, [rows, 1, 1, slots]; None: all
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def start(self, classes: Sequence[int]) -> Tensor:
        """Clear the cache; the class token's input, [2 * images, 1, dim]: conditional, then unconditional."""
        self._clear(2 * len(classes))
        table = self.weights["cls_embedding.embedding_table.weight"]
        null = len(table) - 1
        return table[torch.tensor([*classes, *[null] * len(classes)])][:, None]

    def _clear(self, rows: int) -> None:
        shape = (rows, self.kv_heads, self.before + 1 + self.grid[0] * self.grid[1], self.size)
        self.keys = [torch.zeros(shape) for _ in range(self.layers)]
        self.values = [torch.zeros(shape) for _ in range(self.layers)]

    def embed(self, tokens: Tensor) -> Tensor:
        """Image tokens [images, width] for both halves of the batch."""
        return self.weights["tok_embeddings.weight"][torch.cat([tokens, tokens])]

    def step(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        """Logits [rows, width, vocab] of inputs that are written to `slots` first."""
        places = self.before + torch.tensor(slots)
        visible = torch.arange(self.keys[0].shape[2])[None] <= places[:, None]
        if self.seen is not None:  # padding sees itself, which nobody else does
            visible = visible & self.seen | (torch.arange(len(visible[0]))[None] == places[:, None])
        for layer in range(self.layers):
            x = x + self._attend(layer, self._norm(x, f"layers.{layer}.attention_norm"), places, visible)
            h = self._norm(x, f"layers.{layer}.ffn_norm")
            w1, w2, w3 = (self.weights[f"layers.{layer}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
            gate = h @ w1.T
            x = x + ((gate * torch.sigmoid(gate)) * (h @ w3.T)) @ w2.T
        return self._norm(x, "norm") @ self.weights["output.weight"].T

    def _attend(self, layer: int, x: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        rows, width, _ = x.shape
        sizes = [self.heads * self.size, self.kv_heads * self.size, self.kv_heads * self.size]
        stacked = (x @ self.weights[f"layers.{layer}.attention.wqkv.weight"].T).split(sizes, dim=-1)
        q, k, v = (part.reshape(rows, width, -1, self.size).transpose(1, 2) for part in stacked)
        turns = (places - self.before).clamp(min=0)
        self.keys[layer][:, :, places] = self._turned(k, turns)
        self.values[layer][:, :, places] = v
        share = self.heads // self.kv_heads
        k, v = (cache[layer].repeat_interleave(share, dim=1) for cache in (self.keys, self.values))
        scores = self._turned(q, turns) @ k.transpose(2, 3) / self.size**0.5
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
        joined = (weights @ v).transpose(1, 2).reshape(rows, width, -1)
        return joined @ self.weights[f"layers.{layer}.attention.wo.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weights[f"{name}.weight"]

    def _turned(self, x: Tensor, places: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * self.turns[places]).flatten(-2)

    def _turns(self, base: float) -> Tensor:
        """Complex factors [1 + cells, size / 2]: none for the class token, then row and column angles."""
        quarter = self.size // 4
        speeds = torch.tensor([base ** (-2 * i / (self.size / 2)) for i in range(quarter)])
        table = torch.zeros(1 + self.grid[0] * self.grid[1], 2 * quarter, dtype=torch.complex64)
        for cell in range(self.grid[0] * self.grid[1]):
            row, column = divmod(cell, self.grid[1])
            angles = torch.cat([row * speeds, column * speeds])
            table[1 + cell] = torch.polar(torch.ones_like(angles), angles)
        return table


class TextDecoder(Decoder):
    """Captions in place of classes: features that fill the last of 120 slots, zeros and a mask before them."""

    @torch.no_grad()
    def start(self, captions: Sequence[NDArray[np.float32]]) -> Tensor:
        none = self.weights["cls_embedding.uncond_embedding"]
        self.before = len(none) - 1
        features = torch.zeros(len(captions), *none.shape)
        mask = torch.zeros(len(captions), len(none), dtype=torch.bool)
        for row, caption in enumerate(captions):
            features[row, len(none) - len(caption) :] = torch.from_numpy(caption)
            mask[row, len(none) - len(caption) :] = True
        wide = torch.cat([features, none.expand_as(features)]) @ self.weights["cls_embedding.cap_proj.fc1.weight"].T
        rows = torch.nn.functional.gelu(wide, approximate="tanh") @ self.weights["cls_embedding.cap_proj.fc2.weight"].T
        self._clear(len(rows))
        later = torch.ones(len(rows), self.grid[0] * self.grid[1], dtype=torch.bool)
        self.seen = torch.cat([mask.repeat(2, 1), later], dim=1)[:, None, None]
        self.step(rows[:, :-1], range(-self.before, 0))
        return rows[:, -1:]


@torch.no_grad()
def next_token(decoder: Decoder, classes: Sequence[Any], guidance: float, cfg_interval: int = -1) -> Tokens:
    """Greedy tokens [images, cells], one cell a step. Guidance ends after decode step `cfg_interval`, if not -1."""
    cells = decoder.grid[0] * decoder.grid[1]
    tokens = torch.zeros(len(classes), cells, dtype=torch.int64)
    x = decoder.start(classes)
    for cell in range(cells):
        logits = decoder.step(x, [cell])
        alone = cell >= 1 and -1 < cfg_interval < cell - 1
        tokens[:, cell] = choose(logits[:, -1], guidance, alone)
        x = decoder.embed(tokens[:, cell : cell + 1])
    return tokens.numpy()


@torch.no_grad()
def zipar(decoder: Decoder, classes: Sequence[Any], window: int, guidance: float, cfg_interval: int = -1) -> Tokens:
    """Greedy tokens [images, cells]: row 0 alone, row 1 after it, and each further row `window` steps later."""
    height, width = decoder.grid
    starts = [0] + [width + row * window for row in range(height - 1)]
    tokens = torch.zeros(len(classes), height, width, dtype=torch.int64)
    for now in range(starts[-1] + width):
        known = [min(max(now - start, 0), width) for start in starts]
        # What is fed: the row and column of a token, and the slot that it goes to. First the true last tokens of
        # rows that are now complete, in place of the stand-ins that were fed before.
        last = width - 1
        fed = [(row, last, 1 + row * width + last) for row in range(1, height - 1) if now == starts[row] + width]
        extra = len(fed)
        active = [row for row in range(height) if starts[row] <= now < starts[row] + width]
        for row in active:
            column = known[row]
            slot = row * width + column
            if column > 0:
                fed.append((row, column - 1, slot))
            elif row == 1:
                fed.append((0, last, slot))
            elif row > 1:
                fed.append((row - 2, known[row - 2] - 1, slot))
        if now == 0:
            logits = decoder.step(decoder.start(classes), [0])
        else:
            rows, columns, slots = zip(*fed, strict=True)
            logits = decoder.step(decoder.embed(tokens[:, rows, columns]), slots)
        counter = now - 1 if now < width else sum(known[1:])
        chosen = choose(logits[:, extra:], guidance, alone=-1 < cfg_interval < counter)
        for place, row in enumerate(active):
            tokens[:, row, known[row]] = chosen[:, place]
    return tokens.flatten(1).numpy()


def choose(logits: Tensor, guidance: float, alone: bool) -> Tensor:
    """The most likely tokens of logits [conditional; unconditional], guided or of the conditional half alone."""
    conditional, unconditional = logits.chunk(2)
    guided = conditional if alone else unconditional + (conditional - unconditional) * guidance
    return guided.argmax(-1)


@torch.no_grad()
def teacher_forced(decoder: Decoder, classes: Sequence[Any], tokens: Tokens, guidance: float) -> Tokens:
    """Guided logits [images, cells, vocab] of every cell, given the tokens before it in raster order."""
    x = torch.cat([decoder.start(classes), decoder.embed(torch.from_numpy(tokens[:, :-1]))], dim=1)
    conditional, unconditional = decoder.step(x, range(tokens.shape[1])).chunk(2)
    return (unconditional + (conditional - unconditional) * guidance).numpy()


def probabilities(logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Published sampling: temperature, the `top_k` largest, then the fewest that reach `top_p` (the first always)."""
    logits = logits.astype(np.float64) / max(temperature, 1e-5)
    if top_k > 0:
        least = np.sort(logits, axis=-1)[..., -min(top_k, logits.shape[-1])]
        logits = np.where(logits < least[..., None], -np.inf, logits)
    if top_p < 1:
        order = np.argsort(-logits, axis=-1)
        sorted_shares = np.take_along_axis(softmax(logits), order, axis=-1)
        before = np.cumsum(sorted_shares, axis=-1) - sorted_shares
        removed = np.zeros(logits.shape, dtype=bool)
        np.put_along_axis(removed, order, before > top_p, axis=-1)
        logits = np.where(removed, -np.inf, logits)
    return softmax(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw(shares: np.ndarray, numbers: np.ndarray) -> Tokens:
    """The first token whose cumulative probability exceeds the number."""
    return (np.cumsum(shares, axis=-1) <= numbers[..., None]).sum(-1)


def draw_by_noise(shares: np.ndarray, numbers: np.ndarray) -> Tokens:
    """The token with the largest logarithm of probability plus Gumbel noise."""
    with np.errstate(divide="ignore"):
        return (np.log(shares) - np.log(-np.log(numbers.astype(np.float64)))).argmax(-1)


def noise(seeds: Sequence[int], cells: int, vocabulary: int) -> np.ndarray:
    """A number for each token of each cell, from 32-bit halves of numpy's own Philox of stream 2."""
    made = np.zeros((len(seeds), cells, vocabulary), np.float32)
    for (image, cell), _ in np.ndenumerate(made[..., 0]):
        generator = np.random.Philox(key=seeds[image] | 2 << 64, counter=cell << 64)
        for token in range(0, vocabulary, 2):
            word = generator.random_raw()
            for lane in (0, 1):
                half = word >> 32 * lane & 0xFFFFFFFF
                made[image, cell, token + lane : token + lane + 1] = ((half >> 9) + 0.5) / 2**23
    return made


def uniforms(seeds: Sequence[int], cells: int) -> np.ndarray:
    """The project's random numbers by numpy's own Philox, which counts up before it draws."""
    generators = [[np.random.Philox(key=seed, counter=(cell - 1) % 2**256) for cell in range(cells)] for seed in seeds]
    bits = np.array([[generator.random_raw() for generator in row] for row in generators], dtype=np.uint64)
    return np.minimum(((bits >> np.uint64(11)) / 2.0**53).astype(np.float32), np.float32(1 - 2**-24))
