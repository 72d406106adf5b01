"""The published decoding of Llama-style image models, in the plainest torch there is: Lumina-mGPT, Emu3 and Janus.

It shares nothing with arforge. Every sequence goes alone; a lane keeps the keys and values of what it was fed by their
positions, and an input sees what stands at its own position or before it and was fed by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Llama:
    """A checkpoint's weights by transformers' names, without what stands before a decoder's parts."""

    weights: Mapping[str, Tensor]
    heads: int
    eps: float = 1e-5
    base: float = 10000.0
    swin: bool = False

    @property
    def layers(self) -> int:
        return 1 + max(int(name.split(".")[1]) for name in self.weights if name.startswith("layers."))

    @property
    def size(self) -> int:
        return self.weights["embed_tokens.weight"].shape[1] // self.heads

    def words(self, ids: Sequence[int]) -> Tensor:
        return self.weights["embed_tokens.weight"][list(ids)]


class Lane:
    """One sequence."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.positions = torch.zeros(0, dtype=torch.int64)
        self.keys: list[list[Tensor]] = [[] for _ in range(model.layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(model.layers)]

    def step(self, x: Tensor, positions: Sequence[int], *, together: bool = False) -> Tensor:
        """What the head reads, [width, dim], of inputs [width, dim]. `together`: they all see each other."""
        own = torch.tensor(positions)
        self.positions = torch.cat([self.positions, own])
        visible = self.positions[None] <= own[:, None]
        if together:
            visible = torch.ones_like(visible)
        for layer in range(self.model.layers):
            x = self._layer(x, layer, own, visible)
        return self._norm(x, "norm")

    def _layer(self, x: Tensor, layer: int, positions: Tensor, visible: Tensor) -> Tensor:
        at = f"layers.{layer}."
        first, second = (f"{at}{name}_layernorm" for name in ("input", "post_attention"))
        if self.model.swin:
            x = x + self._norm(self._attend(x, layer, positions, visible), first)
            return x + self._norm(self._feed(x, at), second)
        x = x + self._attend(self._norm(x, first), layer, positions, visible)
        return x + self._feed(self._norm(x, second), at)

    def _feed(self, x: Tensor, at: str) -> Tensor:
        gate, up, down = (self.model.weights[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        gated = x @ gate.T
        return ((gated / (1 + torch.exp(-gated))) * (x @ up.T)) @ down.T

    def _attend(self, x: Tensor, layer: int, positions: Tensor, visible: Tensor) -> Tensor:
        weights, at = self.model.weights, f"layers.{layer}.self_attn."
        queries, keys, values = (self._heads(x @ weights[f"{at}{name}_proj.weight"].T) for name in "qkv")
        queries, keys = (self._normed(part, f"{at}{name}_norm") for part, name in ((queries, "q"), (keys, "k")))
        self.keys[layer].extend(self._turned(keys, positions))
        self.values[layer].extend(values)
        shared = self.model.heads // len(keys[0])
        found = []
        for row, query in enumerate(self._turned(queries, positions)):
            joined = []
            for head in range(self.model.heads):
                own_keys, own_values = (
                    torch.stack([entry[head // shared] for entry in cache])
                    for cache in (self.keys[layer], self.values[layer])
                )
                scores = (own_keys @ query[head] / math.sqrt(self.model.size)).masked_fill(~visible[row], -torch.inf)
                joined.append(torch.softmax(scores, dim=0) @ own_values)
            found.append(torch.cat(joined))
        return torch.stack(found) @ weights[f"{at}o_proj.weight"].T

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.model.size)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """Heads [width, heads, size] after their norms, where the model has them."""
        if f"{name}.weight" not in self.model.weights:
            return x
        scale, shift = (self.model.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        group = x.shape[1] // len(scale)
        centred = x - x.mean(-1, keepdim=True)
        even = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return torch.stack(
            [even[:, head] * scale[head // group] + shift[head // group] for head in range(x.shape[1])], 1
        )

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Pairs of the two halves of a head, turned by position times speed."""
        half = self.model.size // 2
        speeds = torch.tensor([self.model.base ** (-2 * i / self.model.size) for i in range(half)])
        turn = torch.polar(torch.ones(len(positions), half), positions[:, None] * speeds)[:, None]
        pairs = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.model.eps) * self.model.weights[f"{name}.weight"]


@dataclass(frozen=True)
class Images:
    """How a model draws: what it reads of an image token, what it says of one, and what ends a row."""

    grid: tuple[int, int]
    embed: Callable[[int], Tensor]  # of an image token, [dim]
    head: Callable[[Tensor], Tensor]  # [.., dim] to logits of image tokens
    row_end: Tensor | None = None  # [dim]; None: rows have no ends


@torch.no_grad()
def next_token(model: Llama, images: Images, prompt: Sequence[int], other: Sequence[int], guidance: float) -> list[int]:
    """Greedy tokens of one image in raster order. `other`: the prompt that unconditional logits come from."""
    return zipar(model, images, prompt, other, guidance, images.grid[1])


@torch.no_grad()
def zipar(
    model: Llama,
    images: Images,
    prompt: Sequence[int],
    other: Sequence[int],
    guidance: float,
    delay: int,
    start: int = 0,
) -> list[int]:
    """Greedy tokens of one image; a row starts as soon as the row above has `delay` tokens.

    `start`: ids that begin the image, before which all of a prompt's ids see each other; 0: none but those before them.
    """
    height, width = images.grid
    wide = width + (images.row_end is not None)
    lanes = [(Lane(model), ids) for ids in (prompt, other)]
    tokens: dict[tuple[int, int], int] = {}
    fed: list[tuple[Tensor, int]] = []  # an input and its place in the image
    for step in range(width + (height - 1) * delay):
        wanted = [(row, step - row * delay) for row in range(height) if 0 <= step - row * delay < width]
        if step == 0:
            read = [fill(lane, ids, len(ids) - start if start else 0) for lane, ids in lanes]
            logits = [images.head(one)[None] for one in read]
        else:
            places = [place for _, place in fed]
            read = [
                lane.step(torch.stack([x for x, _ in fed]), [len(ids) + place for place in places])
                for lane, ids in lanes
            ]
            logits = [images.head(one) for one in read]
        at = {place: index for index, place in enumerate([-1] if step == 0 else [place for _, place in fed])}
        fed = []
        for row, column in wanted:
            place = row * wide + column
            conditional, unconditional = (one[at[place - 1]] for one in logits)
            token = int((unconditional + guidance * (conditional - unconditional)).argmax())
            tokens[row, column] = token
        for row, column in wanted:
            fed.append((images.embed(tokens[row, column]), row * wide + column))
        for row in range(1, height):  # what stands before the first cell of a row that starts next
            if step + 1 == row * delay and images.row_end is not None:
                fed.append((images.row_end, row * wide - 1))
        fed.sort(key=lambda one: one[1])
    return [tokens[row, column] for row in range(height) for column in range(width)]


def fill(lane: Lane, ids: Sequence[int], together: int) -> Tensor:
    """Feed a prompt; what the head reads of its last id."""
    words = lane.model.words(ids)
    if together:
        lane.step(words[:together], range(together), together=True)
    return lane.step(words[together:], range(together, len(ids)))[-1]
