"""Trains the demo's LlamaGen over the tokenizer's tokens, with class dropout for guidance."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from arforge.export.llamagen import LlamaGen, LlamaGenConfig

CONFIG = LlamaGenConfig(dim=256, n_layer=5, n_head=4, grid=(8, 8), vocab_size=512, num_classes=10)
BATCH = 128
PEAK_RATE = 1.5e-3
CLASS_DROPOUT = 0.1
TOKEN_DROPOUT = 0.1
AVERAGE = 0.999


def train(tokens: Tensor, labels: Tensor, steps: int, resume: Path) -> LlamaGen:
    """Train on int64 tokens [n, cells] and classes [n]; `resume` keeps the state of a run that was cut off.

    Returns the moving average of the weights.
    """
    torch.manual_seed(0)
    model = LlamaGen(CONFIG)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    average = copy.deepcopy(model)
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    first = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    start, running = time.time(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        chosen = torch.randint(len(tokens), (BATCH,))
        loss = loss_of(model, tokens[chosen], labels[chosen])
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
            rate = (step + 1 - first) * BATCH / (time.time() - start)
            print(f"model {step}/{steps} loss {running:.3f} {rate:.0f} images/s", flush=True)
        if (step + 1) % 500 == 0:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, resume)
    return average.eval()


def loss_of(model: LlamaGen, tokens: Tensor, labels: Tensor) -> Tensor:
    config = model.config
    null = config.vocab_size + config.num_classes
    condition = torch.where(torch.rand(labels.shape) < CLASS_DROPOUT, null, config.vocab_size + labels)
    given = tokens[:, :-1]
    noise = torch.randint(config.vocab_size, given.shape)
    given = torch.where(torch.rand(given.shape) < TOKEN_DROPOUT, noise, given)
    inputs = torch.cat([condition[:, None], given], dim=1)
    positions = torch.arange(config.cells).expand_as(inputs)
    mask = torch.ones(config.cells, config.cells, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(inputs, positions, mask)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def learning_rate(step: int, steps: int, warm: int = 200) -> float:
    if step < warm:
        return PEAK_RATE * (step + 1) / warm
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))
