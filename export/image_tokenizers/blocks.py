"""The convolutional encoder and decoder that image tokenizers share: residual blocks, and attention over all pixels.

Tensors are [images, channels, height, width]. `given` is what norms take beside the activations, a vector a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
NORM_EPS = 1e-6

Norm = Callable[[int, int], nn.Module]
"""Makes a norm of so many channels, for a resolution that is so many times the lowest."""

PixelRule = Literal["rounded", "truncated"]
"""How a decoder's output becomes 8-bit pixels: to the nearest of 256 values, or to the next lower one."""


class Dimensions(Protocol):
    @property
    def channels(self) -> int: ...

    @property
    def multipliers(self) -> tuple[int, ...]:
        """Of channels, for each resolution from the highest."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def residual_blocks(self) -> int:
        """Of a resolution in the encoder; the decoder has one more."""

    @property
    def attention(self) -> bool:
        """After each residual block of the lowest resolution; between those of the middle it always is."""


class Encoder(nn.Module):
    def __init__(self, config: Dimensions) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = config.channels
        for level, multiplier in enumerate(config.multipliers):
            lowest = level == len(config.multipliers) - 1
            out = config.channels * multiplier
            stage = Stage(width, out, config.residual_blocks, config.attention and lowest)
            if not lowest:
                stage.downsample = Downsample(out)
            self.conv_blocks.append(stage)
            width = out
        self.mid = middle(width)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in (*self.conv_blocks, *self.mid):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Its stages begin at the lowest resolution."""

    def __init__(self, config: Dimensions, norm: Norm | None = None) -> None:
        super().__init__()
        norm = norm or group_norm
        width = config.channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = middle(width, norm)
        self.conv_blocks = nn.ModuleList()
        for level in reversed(range(len(config.multipliers))):
            lowest = level == len(config.multipliers) - 1
            out = config.channels * config.multipliers[level]
            scale = 2 ** (len(config.multipliers) - 1 - level)
            stage = Stage(width, out, config.residual_blocks + 1, config.attention and lowest, norm, scale)
            if level != 0:
                stage.upsample = Upsample(out)
            self.conv_blocks.append(stage)
            width = out
        self.norm_out = norm(width, scale)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, *given: Tensor) -> Tensor:
        x = self.conv_in(z)
        for stage in (*self.mid, *self.conv_blocks):
            x = stage(x, *given)
        return self.conv_out(F.silu(self.norm_out(x, *given)))


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where there is any, then the resampling."""

    def __init__(
        self, width: int, out: int, blocks: int, attention: bool, norm: Norm | None = None, scale: int = 1
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(width if i == 0 else out, out, norm, scale) for i in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(out, norm) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x, *given)
            if len(self.attn) > 0:
                x = self.attn[index](x, *given)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, width: int, out: int, norm: Norm | None = None, scale: int = 1) -> None:
        super().__init__()
        norm = norm or group_norm
        self.norm1 = norm(width, scale)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = norm(out, scale)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, *given)))
        h = self.conv2(F.silu(self.norm2(h, *given)))
        return (self.nin_shortcut(x) if self.nin_shortcut is not None else x) + h


class SpatialAttention(nn.Module):
    """One head over all pixels of the lowest resolution."""

    def __init__(self, width: int, norm: Norm | None = None) -> None:
        super().__init__()
        self.norm = (norm or group_norm)(width, 1)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        normed = self.norm(x, *given)
        query, key, value = (conv(normed).flatten(2) for conv in (self.q, self.k, self.v))
        weights = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((value @ weights.transpose(1, 2)).view_as(x))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle(width: int, norm: Norm | None = None) -> nn.ModuleList:
    blocks = (ResidualBlock(width, width, norm), SpatialAttention(width, norm), ResidualBlock(width, width, norm))
    return nn.ModuleList(blocks)


def group_norm(width: int, scale: int = 1) -> nn.GroupNorm:  # noqa: ARG001 (it is a Norm)
    return nn.GroupNorm(GROUPS, width, eps=NORM_EPS)


class Codebook(nn.Module):
    """`nearest` follows the authors' distance, term by term. Vectors are the last dimension."""

    def __init__(self, size: int, width: int, normalized: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.normalized = normalized

    def vectors(self) -> Tensor:
        return self.projected(self.embedding.weight)

    def projected(self, z: Tensor) -> Tensor:
        """Where the codebook lies on the unit sphere, the points there."""
        return F.normalize(z, dim=-1) if self.normalized else z

    def nearest(self, z: Tensor) -> Tensor:
        vectors = self.vectors()
        distance = (z**2).sum(-1, keepdim=True) + (vectors**2).sum(-1) - 2 * (z @ vectors.t())
        return distance.argmin(-1)


def problem_of(config: Dimensions) -> str | None:
    """What keeps dimensions from being a model's, in words."""
    return f"{config.channels} channels are not a multiple of {GROUPS}" if config.channels % GROUPS else None


def from_pixels(images: Tensor) -> Tensor:
    """uint8 [images, height, width, 3] to values in [-1, 1] as the encoder takes them."""
    return images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0


def to_pixels(x: Tensor, rule: PixelRule) -> Tensor:
    """The reverse of `from_pixels`, of values that need not be in range."""
    scaled = 127.5 * x + 128.0 if rule == "rounded" else (x + 1.0) / 2.0 * 255.0
    return torch.clamp(scaled, 0, 255).permute(0, 2, 3, 1).to(torch.uint8)
