"""The sampler that is traced into every step graph.

Guidance, temperature, top-k and top-p as LlamaGen's published sampler applies them (arXiv 2406.06525), then the
inverse of the cumulative distribution at a given uniform number, so that the caller owns all randomness. A bundle can
have the draw by noise in its place (`noise.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

PLACEHOLDER_DOMAIN, PLACEHOLDER = "arforge", "KeepLikely"
NO_TOKEN = -1  # in place of a token, where the logits are non-finite
PARTS, ROUNDS = 4, 16  # each round leaves a quarter of the range of logits: 2^-32 is below float32's own resolution


def sample(
    logits: Tensor, uniforms: Tensor, guidance: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [images, targets] and guided logits float32 [images, targets, vocab].

    `logits` [rows, targets, vocab], rows = images or twice that (conditional first); `uniforms`
    [images, targets] in [0, 1); `guidance` float32 [images, targets]; `temperature`, `top_p` float32 [images];
    `top_k` int64 [images]. Of each of these four, 1 in place of a size stands for all.
    Temperature 0 takes the most likely token; top-k 0 and top-p 1 switch their filters off. Where a logit is NaN or
    infinite the token is NO_TOKEN: one sum over the vocabulary tells, which only numbers beyond all use overflow.
    """
    guided = guide(logits, uniforms.shape[0], guidance)
    scaled = guided / temperature.clamp(min=1e-5)[:, None, None]
    probabilities = torch.softmax(keep_likely(scaled, top_k, top_p), dim=-1)
    cumulative = probabilities.cumsum(-1)
    below = cumulative <= uniforms[..., None] * cumulative[..., -1:]
    drawn = below.to(torch.int64).sum(-1)
    tokens = torch.where(temperature[:, None] > 0, drawn, guided.argmax(-1))
    return torch.where(guided.sum(-1).abs() <= torch.finfo(guided.dtype).max, tokens, NO_TOKEN), guided


def guide(logits: Tensor, images: int, guidance: Tensor) -> Tensor:
    """`u + (c - u) * scale`, and c itself where the scale is 1, as it is without unconditional rows, where u is c."""
    rows = torch.arange(images, device=logits.device)
    conditional = logits.index_select(0, rows)
    unconditional = logits.index_select(0, rows + (logits.shape[0] - images))
    scale = guidance[..., None]
    return torch.where(scale == 1, conditional, unconditional + (conditional - unconditional) * scale)


def keep_likely(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to -inf what top-k, then top-p, leave out; in a graph one branch, run only where an image asks for it.

    `logits` [images, .., vocab], limits [images], or [1] for all. Where an image's are off its logits stay as they are,
    bit for bit.
    """
    wanted = (top_k.amax(0) > 0) | (top_p.amin(0) < 1)
    if torch.compiler.is_exporting():
        # Traced apart and spliced in (`step_graph.py`): as a torch.cond it takes most of the tracing time.
        name, given = f"{PLACEHOLDER_DOMAIN}::{PLACEHOLDER}", (wanted, logits, top_k, top_p)
        return torch.onnx.ops.symbolic(name, given, dtype=logits.dtype, shape=logits.shape, version=1)
    return filtered(logits, top_k, top_p) if bool(wanted) else logits


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    vocab = logits.shape[-1]
    for _ in logits.shape[1:]:
        top_k, top_p = top_k[..., None], top_p[..., None]
    off = torch.finfo(logits.dtype).max
    rank_limit = torch.where(top_k > 0, (top_k.clamp(max=vocab) - 1).to(logits.dtype), off)
    logits = keep_head(logits, torch.ones_like(logits), rank_limit)
    mass_limit = torch.where(top_p < 1, top_p, off)
    return keep_head(logits, torch.softmax(logits, dim=-1), mass_limit)


def keep_head(logits: Tensor, weights: Tensor, limit: Tensor) -> Tensor:
    """Keep each logit whose strictly larger ones weigh at most `limit` together; ties stay together.

    The threshold is found by trying several at once: a sort of the whole vocabulary costs more, and TensorRT has
    none; nor does its compiler get through as many halvings in a row.
    """
    finite = torch.where(logits > -torch.inf, logits, logits.amax(-1, keepdim=True))
    low, high = finite.amin(-1, keepdim=True) - 1, finite.amax(-1, keepdim=True)
    shares = torch.arange(1, PARTS, dtype=logits.dtype, device=logits.device) / PARTS
    for _ in range(ROUNDS):
        tried = low + (high - low) * shares  # [.., PARTS - 1], rising
        above = logits[..., None, :] > tried[..., None]
        over = torch.where(above, weights[..., None, :], 0.0).sum(-1) > limit
        low = torch.where(over, tried, low).amax(-1, keepdim=True)
        high = torch.where(over, high, tried).amin(-1, keepdim=True)
    off = limit == torch.finfo(logits.dtype).max
    low = torch.where(off, -torch.inf, low)  # of large logits, 1 below the smallest is the smallest
    return torch.where(logits > low, logits, -torch.inf)
