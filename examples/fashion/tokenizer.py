"""Trains the demo's VQ tokenizer: an autoencoder first, then its codebook from k-means, then both together."""

from __future__ import annotations

import time

import precision
import torch
import torch.nn.functional as F
from torch import Tensor

from arforge.export.image_tokenizers.vq import VQConfig, VQModel

CONFIG = VQConfig(codebook_size=512, codebook_width=8, channels=32, multipliers=(1, 1, 2), latent_channels=64)
BATCH = 64
COMMITMENT = 0.25


def to_input(images: Tensor) -> Tensor:
    """uint8 [n, height, width] grey to float [n, 3, height, width] in [-1, 1]."""
    return (images.float() / 127.5 - 1.0)[:, None].expand(-1, 3, -1, -1)


def train(images: Tensor, steps: int) -> VQModel:
    """Train on uint8 [n, 32, 32]. The first fifth of the steps leaves the latents unquantised."""
    model = VQModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    warm = steps // 5
    used = torch.zeros(CONFIG.codebook_size)
    start = time.time()
    for step in range(steps):
        batch = to_input(images[torch.randint(len(images), (BATCH,))])
        with precision.mixed():
            latent = model.encode_latent(batch).float()
            if step == warm:
                model.quantize.embedding.weight.data = cluster(model, images)
            code, loss = latent, torch.zeros(())
            if step >= warm:
                code, loss, tokens = quantize(model, latent)
                used += torch.bincount(tokens.flatten(), minlength=CONFIG.codebook_size)
            output = model.decode_latent(code)
        output = output.float()
        error = F.l1_loss(output, batch) + F.mse_loss(output, batch)
        (error + loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step > warm and step % 100 == 0:
            alive = int((used > 0).sum())
            if step < 0.8 * steps:
                revive(model, latent, used)
            used.zero_()
            rate = (step + 1) * BATCH / (time.time() - start)
            print(f"tokenizer {step}/{steps} error {error.item():.4f} codes {alive} {rate:.0f} images/s", flush=True)
        elif step % 100 == 0:
            print(f"tokenizer {step}/{steps} error {error.item():.4f}", flush=True)
    return model.eval()


def quantize(model: VQModel, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Straight-through codes, codebook and commitment loss, tokens."""
    with torch.no_grad():
        tokens = (latent.detach() @ model.quantize.vectors().t()).argmax(-1)
    code = model.quantize.vectors()[tokens]
    loss = F.mse_loss(code, latent.detach()) + COMMITMENT * F.mse_loss(latent, code.detach())
    return latent + (code - latent).detach(), loss, tokens


@torch.no_grad()
def cluster(model: VQModel, images: Tensor, rounds: int = 20) -> Tensor:
    """Spherical k-means over the latents of 1,000 images: the first codebook."""
    batch = to_input(images[torch.randperm(len(images))[:1000]])
    points = model.encode_latent(batch).float().flatten(0, 2)
    centres = points[torch.randperm(len(points))[: CONFIG.codebook_size]]
    for _ in range(rounds):
        nearest = (points @ centres.t()).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, F.normalize(sums, dim=-1), centres)
    return centres


@torch.no_grad()
def revive(model: VQModel, latent: Tensor, used: Tensor) -> None:
    """Move codes that nothing chose lately onto latents of this batch."""
    dead = (used == 0).nonzero().flatten()
    points = latent.detach().flatten(0, 2)
    model.quantize.embedding.weight.data[dead] = points[torch.randint(len(points), (len(dead),))]


@torch.no_grad()
def encode(model: VQModel, images: Tensor) -> Tensor:
    """Tokens int64 [n, cells]."""
    colour = images[..., None].expand(-1, -1, -1, 3)
    return torch.cat([model.encode(batch).flatten(1) for batch in colour.split(500)])
