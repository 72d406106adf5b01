"""Makes the VQ tokenizer part by part: tokens first, by k-means over patches, then the decoder that draws them.

A token is the patch, of 1,024 typical ones, that is most like its 4×4 pixels. So the tokens are there at once, for the
text-to-image model too, and no encoder is needed; the decoder, which sees the neighbours, draws more than a patch.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import learning_rate
from torch import Tensor

from arforge.export.image_tokenizers.vq import VQConfig, VQModel

# with fewer than 64 channels the group norms, of 32 groups, take the colour out of a picture
CONFIG = VQConfig(
    codebook_size=1024,
    codebook_width=8,
    channels=64,
    multipliers=(1, 1, 2),
    latent_channels=64,
    residual_blocks=1,
    encoder=False,
)
BATCH = 16
PEAK_RATE = 1e-3
EDGES = 0.5  # weight of the error of neighbouring pixels' differences, against blur
EVERY = 250  # steps a checkpoint


def patches(images: Tensor, side: int) -> Tensor:
    """uint8 [n, height, width, 3] to float [n, rows, columns, 3·side²] in [-1, 1]."""
    cut = (images.float() / 127.5 - 1.0).unfold(1, side, side).unfold(2, side, side)
    return cut.permute(0, 1, 2, 4, 5, 3).flatten(3)


def cluster(images: Tensor, config: VQConfig = CONFIG, rounds: int = 40) -> Tensor:
    """The typical patches, float [codebook size, values], by k-means; rare ones move to where the error is largest."""
    torch.manual_seed(0)
    points = patches(images, config.downsampling).flatten(0, 2)
    apart = torch.unique((points * 4).round(), dim=0) / 4
    drawn = torch.randperm(len(apart))[: config.codebook_size]
    centres = torch.cat([apart[drawn], torch.randn(config.codebook_size - len(drawn), points.shape[1])])
    for turn in range(rounds):
        near, error = nearest(points, centres)
        count = torch.bincount(near, minlength=len(centres))[:, None]
        sums = torch.zeros_like(centres).index_add_(0, near, points)
        centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
        rare = (count[:, 0] < 3).nonzero().flatten()
        if len(rare) and turn < rounds - 6:
            centres[rare] = points[torch.multinomial(error.clamp(min=1e-9), len(rare), replacement=True)]
    return centres


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Of points [n, values]: the nearest centres, int64 [n], and the squared distances [n]."""
    found = [((centres**2).sum(1) - 2 * part @ centres.t()).min(1) for part in points.split(20_000)]
    error = torch.cat([part.values for part in found]) + (points**2).sum(1)
    return torch.cat([part.indices for part in found]), error


def assign(images: Tensor, centres: Tensor, config: VQConfig = CONFIG) -> Tensor:
    """Tokens int64 [n, rows, columns] of uint8 [n, height, width, 3]."""
    points = patches(images, config.downsampling)
    return nearest(points.flatten(0, 2), centres)[0].view(points.shape[:3])


def new(centres: Tensor, config: VQConfig = CONFIG) -> VQModel:
    """An untrained model whose codes are the patches' principal components; its residual blocks begin small."""
    torch.manual_seed(0)
    model = VQModel(config)
    left, strength, _ = torch.linalg.svd(centres - centres.mean(0), full_matrices=False)
    model.quantize.embedding.weight.data = (left * strength**0.5)[:, : config.codebook_width].contiguous()
    for name, parameter in model.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight")):
            parameter.data *= 0.05
    return model


def train_decoder(model: VQModel, tokens: Tensor, images: Tensor, steps: int, resume: Path, faster: bool) -> None:
    """Train decoder and codebook to draw uint8 [n, side, side, 3] from tokens [n, rows, columns].

    `resume` keeps the state of a run that was cut off; `faster` compiles the decoder.
    """

    decode_latent = torch.compile(model.decode_latent) if faster else model.decode_latent
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    first = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        torch.manual_seed(first)
    start, mean = time.time(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * learning_rate(step, steps, warm=100)
        chosen = torch.randint(len(images), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            output = decode_latent(F.embedding(tokens[chosen], model.quantize.vectors()))
        error = difference(output.float(), to_input(images[chosen]))
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = error.item() if step == first else 0.98 * mean + 0.02 * error.item()
        if step % 50 == 0:
            rate = (step + 1 - first) * BATCH / (time.time() - start)
            print(f"decoder {step}/{steps} loss {mean:.4f} {rate:.0f} images/s", flush=True)
        if (step + 1) % EVERY == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, resume)


def to_input(images: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] to float [n, 3, height, width] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def difference(output: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the steps from pixel to pixel."""
    edges = F.l1_loss(output.diff(dim=2), target.diff(dim=2)) + F.l1_loss(output.diff(dim=3), target.diff(dim=3))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + EDGES * edges


@torch.no_grad()
def decode(model: VQModel, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens int64 [n, cells] to uint8 [n, side, side, 3]."""
    return torch.cat([model.decode(batch.view(-1, *grid)) for batch in tokens.split(100)])
