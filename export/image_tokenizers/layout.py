"""How published checkpoints name the tensors of an image tokenizer, and where in a checkpoint it is.

Modules have LlamaGen's names. A layout says what another publisher calls the same, and what that publisher's models
do otherwise: one architecture, several releases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arforge.export.image_tokenizers.blocks import PixelRule

CODEBOOK = "quantize.embedding.weight"
RESOLUTION = re.compile(r"decoder\.(?:conv_blocks|up|up_block\.up)\.(\d+)\.")
JANUS = "gen_vision_model."  # stands before the names of its tokenizer


Names = tuple[tuple[str, str], ...]
"""Patterns in the names of modules, and what stands for them, in order."""


@dataclass(frozen=True)
class Layout:
    prefix: str = ""  # before all names, where the tokenizer is a part of a model
    names: Names = ()
    reversed_in: int = 0  # resolutions of a decoder that are counted from the highest
    normalized: bool = True  # a VQ's codebook lies on the unit sphere
    pixels: PixelRule = "rounded"
    linear: bool = False  # attention's projections are matrices, not convolutions

    def name(self, own: str) -> str:
        """What the checkpoint calls a module's tensor."""
        if self.reversed_in:
            own = re.sub(r"(?<=^decoder\.conv_blocks\.)\d+", lambda m: str(self.reversed_in - 1 - int(m[0])), own)
        for pattern, published in self.names:
            own = re.sub(pattern, published, own)
        return self.prefix + own


OWN = Layout()
TAMING: Names = (  # of "taming transformers", which Chameleon, Emu3 and transformers' Janus keep
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
OVER_TIME: Names = (
    (r"(\.time_res_stack\.\d+\.conv[12])\.", r"\1.conv."),
    (r"(\.time_conv\.\d+)\.", r"\1.conv.conv."),
    (r"^((?:post_)?quant_conv)\.", r"\1.conv."),
)
EMU3_OF_TRANSFORMERS: Names = (
    *OVER_TIME,
    (r"^encoder\.conv_blocks\.", "encoder.down_block.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up_block.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".middle_block.block_1."),
    (r"\.mid\.1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.1\.", ".middle_block.attn_1."),
    (r"\.mid\.2\.", ".middle_block.block_2."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn\.\d+|\.attn_1)\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn\.\d+|\.attn_1)\.proj_out\.", r"\1.out_proj."),
)


def layout_of(names: Iterable[str]) -> Layout:
    """The layout of a checkpoint with these names; a tokenizer inside a model is found by its codebook.

    Raises ValueError for a decoder without resolutions.
    """
    names = list(names)
    prefix = min((name.removesuffix(CODEBOOK) for name in names if name.endswith(CODEBOOK)), key=len, default="")
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if any(name.startswith("decoder.up_block.") for name in inside):
        return from_highest(inside, Layout(prefix, EMU3_OF_TRANSFORMERS, linear=True))
    if any(name.startswith("decoder.time_res_stack.") for name in inside):
        return from_highest(inside, Layout(prefix, (*OVER_TIME, *TAMING)))
    if "decoder.up.0.upsample.conv.weight" in inside:  # transformers' Janus begins at the lowest resolution
        return Layout(prefix, TAMING, pixels="truncated")
    if any(name.startswith("decoder.up.") for name in inside):
        return from_highest(inside, Layout(prefix, TAMING))
    return Layout(prefix, pixels="truncated" if prefix.endswith(JANUS) else "rounded")


def from_highest(names: Iterable[str], layout: Layout) -> Layout:
    """What such a layout's models have in common, beside the order of a decoder's resolutions."""
    return replace(layout, reversed_in=resolutions(names), normalized=False, pixels="truncated")


def resolutions(names: Iterable[str]) -> int:
    """Of a decoder. Raises ValueError if there is none."""
    return 1 + max(int(match[1]) for name in names if (match := RESOLUTION.match(name)))


def inferred(shapes: Mapping[str, Sequence[int]], layout: Layout) -> dict[str, Any]:
    """The dimensions that all kinds have, as fields. Raises KeyError if a tensor is missing."""

    def shape(name: str) -> Sequence[int]:
        return shapes[layout.name(name)]

    size, width = shape(CODEBOOK)
    inside = {name.removeprefix(layout.prefix) for name in shapes}
    levels = resolutions(inside)
    blocks = 0
    while layout.name(f"decoder.conv_blocks.0.res.{blocks}.conv1.weight") in shapes:
        blocks += 1
    encoder = any(name.startswith("encoder.") for name in inside)
    outputs = [shape(f"decoder.conv_blocks.{level}.res.{blocks - 1}.conv2.weight")[0] for level in range(levels)]
    channels = shape("encoder.conv_in.weight")[0] if encoder else math.gcd(*outputs)
    return {
        "codebook_size": size,
        "codebook_width": width,
        "channels": channels,
        "multipliers": tuple(output // channels for output in reversed(outputs)),
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "residual_blocks": blocks - 1,
        "attention": layout.name("decoder.conv_blocks.0.attn.0.q.weight") in shapes,
        "encoder": encoder,
    }
