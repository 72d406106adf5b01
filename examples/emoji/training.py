"""Trains text encoder and decoder together, with captions dropped for guidance."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from common import learning_rate
from model import Generator, pad_left
from torch import Tensor, nn

BATCH = 24
PEAK_RATE = 1.2e-3
CAPTION_DROPOUT = 0.1
TOKEN_DROPOUT = 0.05
BLIND = 0.6  # pictures of which any share of tokens is replaced, so that the caption has to tell; none in the end
TEXT_RATE = 0.3  # of the learning rate, for the text encoder, which knows the emoji already
AVERAGE = 0.999
EVERY = 250  # steps a checkpoint

Model = TypeVar("Model", bound=nn.Module)
Captions = Sequence[Sequence[Sequence[int]]]
"""For every picture, the ids of its captions."""


def train(
    model: Generator,
    tokens: Tensor,
    captions: Captions,
    steps: int,
    resume: Path,
    peak_rate: float = PEAK_RATE,
    batch: int = BATCH,
    look: Callable[[Generator, int], None] = lambda model, step: None,
) -> Generator:
    """Train on the pictures' tokens, int64 [n, cells]; see `optimize`."""

    def loss(blind: float) -> Tensor:
        return batch_loss(model, tokens, captions, torch.randint(len(tokens), (batch,)), blind)

    return optimize(model, {model.text: TEXT_RATE, model.image: 1.0}, loss, steps, resume, peak_rate, batch, look)


def optimize(
    model: Model,
    parts: Mapping[nn.Module, float],
    loss_of: Callable[[float], Tensor],
    steps: int,
    resume: Path,
    peak_rate: float,
    batch: int,
    look: Callable[[Model, int], None] = lambda model, step: None,
) -> Model:
    """Minimise the loss of a batch, given the share of pictures that are `BLIND`; `resume` keeps a cut-off run's state.

    `parts` of the model learn at their share of the rate. `look` is given the moving average of the weights at every
    checkpoint. Returns that average.
    """
    torch.manual_seed(0)
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    groups = [
        {"params": [p for p in part.parameters() if (p.dim() == 2) == matrices], "weight_decay": decay, "part": rate}
        for part, rate in parts.items()
        for matrices, decay in ((True, 0.02), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95), fused=True)
    first = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        torch.manual_seed(first)
    start, running = time.time(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["part"] * peak_rate * learning_rate(step, steps)
        loss = loss_of(BLIND * min(1.0, 3 * (1 - step / steps)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0:
            rate = (step + 1 - first) * batch / (time.time() - start)
            print(f"model {step}/{steps} loss {running:.3f} {rate:.1f} images/s", flush=True)
        if (step + 1) % EVERY == 0:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, resume)
            look(average, step + 1)
    return average.eval()


def batch_loss(model: Generator, tokens: Tensor, captions: Captions, chosen: Tensor, blind: float) -> Tensor:
    """Mean cross-entropy, in nats a token, with one of each picture's captions."""
    of_each = [captions[i] for i in chosen.tolist()]
    ids, mask = pad_left([some[int(torch.randint(len(some), ()))] for some in of_each])
    wanted = tokens[chosen]
    noise = torch.randint(model.image.config.vocab_size, wanted.shape)
    share = torch.where(torch.rand(len(chosen), 1) < blind, torch.rand(len(chosen), 1), TOKEN_DROPOUT)
    given = torch.where(torch.rand(wanted.shape) < share, noise, wanted)[:, :-1]
    dropped = torch.rand(len(chosen)) < CAPTION_DROPOUT
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, mask, given, dropped)
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
