"""Trains the demo's generators over the tokenizer's tokens, with class dropout for guidance."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import precision
import torch
import torch.nn.functional as F
from common import learning_rate
from torch import Tensor, nn

from arforge.export.families.arpg import ARPG, ARPGConfig
from arforge.export.families.llamagen import LlamaGen, LlamaGenConfig
from arforge.export.families.par import PAR, PARConfig
from arforge.runner.schedules.regions import region_order

DIMENSIONS = {"dim": 256, "n_head": 4, "grid": (8, 8), "vocab_size": 512, "num_classes": 10}
BATCH = 128
PEAK_RATE = 1.5e-3
CLASS_DROPOUT = 0.1
TOKEN_DROPOUT = 0.1
AVERAGE = 0.999


@dataclass(frozen=True)
class Family:
    config: LlamaGenConfig
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]  # of tokens [n, cells] and labels [n]


def train(
    family: Family,
    tokens: Tensor,
    labels: Tensor,
    steps: int,
    resume: Path,
    peak_rate: float = PEAK_RATE,
    start: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Train on int64 tokens [n, cells] and classes [n]; `resume` keeps the state of a run that was cut off.

    `start`: weights to go on from, by the model's names. Returns the moving average of the weights.
    """
    torch.manual_seed(0)
    model = family.build()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    if start is not None:
        model.load_state_dict(start)
    average = copy.deepcopy(model)
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95))
    first = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    began, running = time.time(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * learning_rate(step, steps)
        chosen = torch.randint(len(tokens), (BATCH,))
        loss = family.loss(model, tokens[chosen], labels[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(AVERAGE, (step + 1) / (step + 10))
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            rate = (step + 1 - first) * BATCH / (time.time() - began)
            print(f"model {step}/{steps} loss {running:.3f} {rate:.0f} images/s", flush=True)
        if (step + 1) % 500 == 0:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, resume)
    return average.eval()


def llamagen_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    cells = tokens.shape[1]
    inputs = torch.cat([drop_classes(labels, first=DIMENSIONS["vocab_size"]), drop_tokens(tokens[:, :-1])], dim=1)
    logits = run(model, inputs, torch.arange(cells).expand_as(inputs), causal(cells))
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def par_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """As LlamaGen's, in region order: the transition tokens take the places from `regions` + 1 on."""
    config = model.config
    order, regions = torch.tensor(region_order(config.grid, config.regions)), config.regions
    sequence, cells = tokens[:, order], tokens.shape[1]
    given = drop_tokens(sequence[:, : cells - regions])
    first = config.tokens - config.transition_tokens
    transition = torch.arange(first, config.tokens).expand(len(tokens), -1)
    condition = drop_classes(labels, first=DIMENSIONS["vocab_size"])
    inputs = torch.cat([condition, given[:, :regions], transition, given[:, regions:]], dim=1)
    nowhere = torch.zeros(config.transition_tokens, dtype=torch.int64)
    cell = 1 + order[: cells - regions]
    positions = torch.cat([torch.zeros(1, dtype=torch.int64), cell[:regions], nowhere, cell[regions:]])
    places = torch.arange(cells)
    rank = torch.where(places < regions, places, places // regions * regions)
    logits = run(model, inputs, positions.expand_as(inputs), rank[None, :] <= rank[:, None])
    return F.cross_entropy(logits.flatten(0, 1), sequence.flatten())


def arpg_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Every image in an order of its own; each query sees the tokens before its cell."""
    order = torch.rand(tokens.shape).argsort(dim=1)
    sequence, cells = tokens.gather(1, order), tokens.shape[1]
    inputs = torch.cat([drop_classes(labels, first=DIMENSIONS["vocab_size"] + 1), drop_tokens(sequence[:, :-1])], dim=1)
    asked = 1 + order
    positions = torch.cat([torch.zeros_like(asked[:, :1]), asked[:, :-1]], dim=1)
    logits = run(model, inputs, positions, causal(cells), asked, causal(cells))
    return F.cross_entropy(logits.flatten(0, 1), sequence.flatten())


def run(model: nn.Module, *arguments: Tensor) -> Tensor:
    with precision.mixed():
        logits: Tensor = model(*arguments)[0]
    return logits


def drop_classes(labels: Tensor, first: int) -> Tensor:
    """Condition ids [n, 1]: classes from id `first` on, some replaced by the null class behind them."""
    dropped = torch.rand(labels.shape) < CLASS_DROPOUT
    return torch.where(dropped, first + DIMENSIONS["num_classes"], first + labels)[:, None]


def drop_tokens(tokens: Tensor) -> Tensor:
    """Some tokens replaced by any other."""
    noise = torch.randint(DIMENSIONS["vocab_size"], tokens.shape)
    return torch.where(torch.rand(tokens.shape) < TOKEN_DROPOUT, noise, tokens)


def causal(cells: int) -> Tensor:
    return torch.ones(cells, cells, dtype=torch.bool).tril()


LLAMAGEN = LlamaGenConfig(n_layer=5, **DIMENSIONS)
PAR4 = PARConfig(n_layer=5, regions=4, **DIMENSIONS)
RANDOM_ORDER = ARPGConfig(n_layer=6, **DIMENSIONS)
FAMILIES = {
    "llamagen": Family(LLAMAGEN, lambda: LlamaGen(LLAMAGEN), llamagen_loss),
    "par": Family(PAR4, lambda: PAR(PAR4), par_loss),
    "arpg": Family(RANDOM_ORDER, lambda: ARPG(RANDOM_ORDER), arpg_loss),
}
