"""The video tokenizer of Emu3, VisionVQ, for pictures: its convolutions over time collapse.

A picture is a video of one latent frame, and all padding in time is zeros in front of it. So of a causal kernel its
last tap alone sees something, and the decoder's first frame, which is the picture, depends on no other frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.image_tokenizers.blocks import (
    Codebook,
    Decoder,
    Encoder,
    from_pixels,
    group_norm,
    problem_of,
    to_pixels,
)
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerKind, Shape
from arforge.export.image_tokenizers.layout import OWN, Layout, inferred

TAPS = 3  # in time, of a causal convolution
CAUSAL = re.compile(r"(?:.*\.time_res_stack\.\d+\.conv[12]|decoder\.time_conv\.\d+|(?:post_)?quant_conv)\.weight")
PROJECTION = re.compile(r".*\.(?:mid\.1|attn\.\d+)\.(?:q|k|v|proj_out)\.weight")


@dataclass(frozen=True)
class VisionVQConfig:
    codebook_size: int = 32768
    codebook_width: int = 4
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    latent_channels: int = 4
    residual_blocks: int = 2
    attention: bool = True  # at the lowest resolution, beside the middle's
    encoder: bool = True  # False: tokens become images alone
    halvings: int = 2  # of the frame rate: a latent frame is 4 of a video

    @property
    def downsampling(self) -> int:
        """Pixels a token covers, a side."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def infer(cls, shapes: Mapping[str, Sequence[int]], layout: Layout = OWN) -> VisionVQConfig:
        """Read the dimensions off a checkpoint's tensor shapes. Raises KeyError if a tensor is missing."""
        halvings = 0
        while layout.name(f"decoder.time_conv.{halvings}.weight") in shapes:
            halvings += 1
        return cls(**inferred(shapes, layout), halvings=halvings)


class VisionVQModel(ImageTokenizer):
    def __init__(self, config: VisionVQConfig) -> None:
        super().__init__(config)
        latent, width = config.latent_channels, config.codebook_width
        self.decoder = VisionDecoder(config)
        self.quantize = Codebook(config.codebook_size, width, normalized=False)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        if config.encoder:
            self.encoder = VisionEncoder(config)
            self.quant_conv = nn.Conv2d(latent, width, 1)

    def encode(self, images: Tensor) -> Tensor:
        z = self.quant_conv(self.encoder(from_pixels(images)))
        return self.quantize.nearest(z.permute(0, 2, 3, 1))

    def decode(self, tokens: Tensor) -> Tensor:
        vectors = F.embedding(tokens, self.quantize.vectors()).permute(0, 3, 1, 2)
        return to_pixels(self.decoder(self.post_quant_conv(vectors), vectors), "truncated")


class VisionEncoder(Encoder):
    """Takes a picture for a latent frame: that many equal ones."""

    def __init__(self, config: VisionVQConfig) -> None:
        super().__init__(config)
        width = config.latent_channels
        halves = (nn.Conv3d(width, width, (4, 3, 3), stride=(2, 1, 1)) for _ in range(config.halvings))
        self.time_conv = nn.ModuleList(halves)
        self.time_res_stack = nn.ModuleList(FrameBlock(width) for _ in range(config.residual_blocks))

    def forward(self, x: Tensor) -> Tensor:
        frames = super().forward(x)[:, :, None].expand(-1, -1, 2 ** len(self.time_conv), -1, -1)
        for half in self.time_conv:
            frames = F.silu(half(F.pad(frames, (1, 1, 1, 1, 2, 0))))
        x = frames.squeeze(2)
        for block in self.time_res_stack:
            x = block(x)
        return x


class VisionDecoder(Decoder):
    def __init__(self, config: VisionVQConfig) -> None:
        super().__init__(config, lambda width, scale: SpatialNorm(width, config.codebook_width, scale))
        width = config.latent_channels
        self.time_res_stack = nn.ModuleList(FrameBlock(width) for _ in range(config.residual_blocks))
        self.time_conv = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.halvings))

    def forward(self, z: Tensor, *given: Tensor) -> Tensor:
        return super().forward(self.first_frame(z), *(self.first_frame(vectors) for vectors in given))

    def first_frame(self, x: Tensor) -> Tensor:
        """Of the frames that a latent one becomes."""
        for block in self.time_res_stack:
            x = block(x)
        for double in self.time_conv:
            x = F.silu(double(x))
        return x


class FrameBlock(nn.Module):
    """A residual block over time, of one frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = BatchNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class BatchNorm(nn.Module):
    """With the statistics of training."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift come from the codebook's vectors, for all pixels of a token alike.

    They stay at the tokens' resolution: as large as the activations they would take three times their memory.
    """

    def __init__(self, width: int, vector_width: int, scale: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(width)
        self.conv_y = nn.Conv2d(vector_width, width, 1)
        self.conv_b = nn.Conv2d(vector_width, width, 1)
        self.scale = scale

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        scale, shift = self.conv_y(vectors), self.conv_b(vectors)
        if self.scale == 1:
            return self.norm_layer(x) * scale + shift
        scale, shift = (one[:, :, :, None, :, None] for one in (scale, shift))
        images, width, height, columns = x.shape
        side = self.scale
        x = self.norm_layer(x).view(images, width, height // side, side, columns // side, side)
        return (x * scale + shift).view(images, width, height, columns)


def problem(config: VisionVQConfig) -> str | None:
    if config.latent_channels != config.codebook_width:
        return f"{config.latent_channels} latent channels for codes of {config.codebook_width}: they must be as many"
    return problem_of(config)


def stored_shape(name: str, shape: Shape, layout: Layout) -> Shape:
    if CAUSAL.fullmatch(name):
        return (*shape[:2], TAPS, *shape[2:])
    return shape[:2] if layout.linear and PROJECTION.fullmatch(name) else shape


def parameter(stored: Tensor, shape: Shape) -> Tensor:
    if stored.dim() == len(shape) + 1:
        stored = stored[:, :, -1]
    return stored.reshape(shape)


KIND = ImageTokenizerKind(
    kind="vision-vq",
    title="VisionVQ tokenizer",
    sign=("quantize.embedding.weight", "time_res_stack."),
    infer=VisionVQConfig.infer,
    problem=problem,
    module=VisionVQModel,
    stored_shape=stored_shape,
    parameter=parameter,
)
