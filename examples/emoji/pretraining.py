"""Teaches the text encoder what the emoji look like, before it trains with the image model.

Every token's features have to tell, by a linear map, the picture's colours cell by cell; and so which emoji it is.
The image model then finds the picture in the features, where it would take long to learn 1,900 names by heart.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from model import pad_left
from t5 import T5Encoder
from torch import Tensor, nn

BATCH = 128
PEAK_RATE = 2e-3
TEMPERATURE = 0.05
WHITENING = 0.5  # power of the singular values that is taken out: 0 keeps them, 1 makes all directions equal


def looks(images: Tensor, cells: int) -> Tensor:
    """What a picture looks like, float [n, 3·cells²], unit length: its cells' colours, small differences raised."""
    colours = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0, cells).flatten(1)
    left, strength, _ = torch.linalg.svd(colours - colours.mean(0), full_matrices=False)
    return F.normalize(left * strength ** (1 - WHITENING), dim=-1)


def train(text: T5Encoder, images: Tensor, captions: list[list[list[int]]], steps: int, cells: int = 10) -> None:
    """Train on uint8 pictures [n, side, side, 3] and the ids of each one's captions; in place."""
    torch.manual_seed(0)
    targets = looks(images, cells)
    head = nn.Linear(text.config.d_model, targets.shape[1])
    parameters = [*text.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    start, right = time.time(), 0.0
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        some = [captions[i] for i in chosen.tolist()]
        ids, mask = pad_left([each[int(torch.randint(len(each), ()))] for each in some])
        with torch.autocast("cpu", torch.bfloat16):
            features = text(ids, mask)
            told = F.normalize(head(features).float(), dim=-1)
        mean = (told * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        each = (told * targets[chosen][:, None]).sum(-1)[mask]
        odds = F.normalize(mean, dim=-1) @ targets.t() / TEMPERATURE
        loss = F.cross_entropy(odds, chosen) + 4 * (1 - each).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad(set_to_none=True)
        right = 0.98 * right + 0.02 * (odds.argmax(1) == chosen).float().mean().item()
        if step % 50 == 0:
            speed = (step + 1) * BATCH / (time.time() - start)
            print(f"text {step}/{steps} loss {loss.item():.3f} right {right:.3f} {speed:.0f} captions/s", flush=True)
