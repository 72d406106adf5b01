"""Traces the tokenizer's two halves: tokens to uint8 pixels ("decoder"), and the reverse ("encoder")."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn

from arforge.export.trace import trace
from arforge.export.vq import VQModel


class DecoderGraph(nn.Module):
    def __init__(self, model: VQModel, grid: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.grid = model, grid

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.decode(tokens, self.grid)


class EncoderGraph(nn.Module):
    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def trace_decoder(model: VQModel, grid: tuple[int, int]) -> ir.Model:
    """int64 `tokens` [images, cells] to uint8 `images` [images, height, width, 3]."""
    images = torch.export.Dim("images")
    tokens = torch.zeros(2, grid[0] * grid[1], dtype=torch.int64)
    return trace(DecoderGraph(model, grid), (tokens,), ({0: images},), ["tokens"], ["images"])


def trace_encoder(model: VQModel, grid: tuple[int, int]) -> ir.Model:
    """The reverse of `trace_decoder`."""
    images = torch.export.Dim("images")
    side = model.config.downsampling
    pixels = torch.zeros(2, grid[0] * side, grid[1] * side, 3, dtype=torch.uint8)
    return trace(EncoderGraph(model), (pixels,), ({0: images},), ["images"], ["tokens"])
