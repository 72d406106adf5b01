"""The VQ image tokenizer of LlamaGen (VQ-16 and its kin): convolutional encoder, codebook, decoder.

Layout of the authors' `vq_ds16_c2i.pt`, all dimensions free: `VQConfig.infer` reads them off the tensors.
Not covered: the losses and the discriminator (`examples/fashion` trains with its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerKind

GROUPS = 32
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VQConfig:
    codebook_size: int = 16384
    codebook_width: int = 8
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latent_channels: int = 256
    residual_blocks: int = 2

    @property
    def downsampling(self) -> int:
        """Pixels a token covers, a side."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def infer(cls, shapes: Mapping[str, Sequence[int]]) -> VQConfig:
        """Read the dimensions off a checkpoint's tensor shapes. Raises KeyError if a tensor is missing."""
        channels = shapes["encoder.conv_in.weight"][0]
        levels = 1 + max(int(k.split(".")[2]) for k in shapes if k.startswith("encoder.conv_blocks."))
        blocks = 1 + max(int(k.split(".")[4]) for k in shapes if k.startswith("encoder.conv_blocks.0.res."))
        outputs = [shapes[f"encoder.conv_blocks.{i}.res.{blocks - 1}.conv2.weight"][0] for i in range(levels)]
        size, width = shapes["quantize.embedding.weight"]
        return cls(
            codebook_size=size,
            codebook_width=width,
            channels=channels,
            multipliers=tuple(output // channels for output in outputs),
            latent_channels=shapes["quant_conv.weight"][1],
            residual_blocks=blocks,
        )


class VQModel(ImageTokenizer):
    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.codebook_width)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_width, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_width, config.latent_channels, 1)

    def encode_latent(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], [images, 3, height, width], to unit vectors [images, rows, columns, code width]."""
        return F.normalize(self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1), dim=-1)

    def decode_latent(self, z: Tensor) -> Tensor:
        """The reverse, from codebook vectors; the output is not clamped."""
        return self.decoder(self.post_quant_conv(z.permute(0, 3, 1, 2)))

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [images, height, width, 3] to int64 tokens [images, rows, columns]."""
        x = images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        return self.quantize.nearest(self.encode_latent(x))

    def decode(self, tokens: Tensor) -> Tensor:
        """The reverse of `encode`, rounded as the authors' sampler does."""
        x = self.decode_latent(F.embedding(tokens, self.quantize.vectors()))
        return torch.clamp(127.5 * x + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8)


class Codebook(nn.Module):
    """l2-normalised codebook; `nearest` follows the authors' distance, term by term."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def vectors(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        vectors = self.vectors()
        distance = (z**2).sum(-1, keepdim=True) + (vectors**2).sum(-1) - 2 * (z @ vectors.t())
        return distance.argmin(-1)


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = config.channels
        for level, multiplier in enumerate(config.multipliers):
            last = level == len(config.multipliers) - 1
            out = config.channels * multiplier
            stage = Stage(width, out, config.residual_blocks, attention=last)
            if not last:
                stage.downsample = Downsample(out)
            self.conv_blocks.append(stage)
            width = out
        self.mid = middle(width)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.conv_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        width = config.channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = middle(width)
        self.conv_blocks = nn.ModuleList()
        for level in reversed(range(len(config.multipliers))):
            out = config.channels * config.multipliers[level]
            lowest = level == len(config.multipliers) - 1
            stage = Stage(width, out, config.residual_blocks + 1, attention=lowest)
            if level != 0:
                stage.upsample = Upsample(out)
            self.conv_blocks.append(stage)
            width = out
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for stage in self.conv_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention at the lowest one, then the resampling."""

    def __init__(self, width: int, out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(width if i == 0 else out, out) for i in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(out) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = group_norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if self.nin_shortcut is not None else x) + h


class SpatialAttention(nn.Module):
    """One head over all pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
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


def middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(width, width), SpatialAttention(width), ResidualBlock(width, width))


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=NORM_EPS)


def problem(config: VQConfig) -> str | None:
    return f"{config.channels} channels are not a multiple of {GROUPS}" if config.channels % GROUPS else None


KIND = ImageTokenizerKind(
    kind="vq",
    title="VQ tokenizer",
    sign=("quantize.embedding.weight",),
    infer=VQConfig.infer,
    problem=problem,
    module=VQModel,
)
