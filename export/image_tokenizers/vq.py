"""The VQ image tokenizer of LlamaGen (VQ-16 and its kin), Janus and Chameleon: encoder, codebook, decoder.

All dimensions are free: `VQConfig.infer` reads them off the tensors. What the models differ in is their layout's.
Not covered: the losses and the discriminator (`examples/fashion` trains with its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.image_tokenizers.blocks import (
    Codebook,
    Decoder,
    Encoder,
    PixelRule,
    from_pixels,
    problem_of,
    to_pixels,
)
from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerKind
from arforge.export.image_tokenizers.layout import OWN, Layout, inferred


@dataclass(frozen=True)
class VQConfig:
    codebook_size: int = 16384
    codebook_width: int = 8
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latent_channels: int = 256
    residual_blocks: int = 2
    attention: bool = True  # at the lowest resolution, beside the middle's
    encoder: bool = True  # False: tokens become images alone
    normalized: bool = True  # the codebook lies on the unit sphere
    pixels: PixelRule = "rounded"

    @property
    def downsampling(self) -> int:
        """Pixels a token covers, a side."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def infer(cls, shapes: Mapping[str, Sequence[int]], layout: Layout = OWN) -> VQConfig:
        """Read the dimensions off a checkpoint's tensor shapes. Raises KeyError if a tensor is missing."""
        return cls(**inferred(shapes, layout), normalized=layout.normalized, pixels=layout.pixels)


class VQModel(ImageTokenizer):
    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.pixels = config.pixels
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.codebook_width, config.normalized)
        self.post_quant_conv = nn.Conv2d(config.codebook_width, config.latent_channels, 1)
        if config.encoder:
            self.encoder = Encoder(config)
            self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_width, 1)

    def encode_latent(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], [images, 3, height, width], to vectors [images, rows, columns, code width]."""
        return self.quantize.projected(self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1))

    def decode_latent(self, z: Tensor) -> Tensor:
        """The reverse, from codebook vectors; the output is not clamped."""
        return self.decoder(self.post_quant_conv(z.permute(0, 3, 1, 2)))

    def encode(self, images: Tensor) -> Tensor:
        return self.quantize.nearest(self.encode_latent(from_pixels(images)))

    def decode(self, tokens: Tensor) -> Tensor:
        return to_pixels(self.decode_latent(F.embedding(tokens, self.quantize.vectors())), self.pixels)


KIND = ImageTokenizerKind(
    kind="vq",
    title="VQ tokenizer",
    sign=("quantize.embedding.weight",),
    infer=VQConfig.infer,
    problem=problem_of,
    module=VQModel,
)
