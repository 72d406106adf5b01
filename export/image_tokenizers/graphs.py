"""Traces an image tokenizer's two halves: tokens to uint8 pixels ("decoder"), and the reverse ("encoder")."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn

from arforge.export.image_tokenizers.image_tokenizer import ImageTokenizer
from arforge.export.trace import trace


class DecoderGraph(nn.Module):
    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.decode(tokens)


class EncoderGraph(nn.Module):
    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def trace_decoder(model: ImageTokenizer) -> ir.Model:
    """int64 `tokens` [images, rows, columns] to uint8 `images` [images, height, width, 3]; any grid."""
    shape = {0: torch.export.Dim("images"), 1: torch.export.Dim("rows"), 2: torch.export.Dim("columns")}
    tokens = torch.zeros(2, 3, 5, dtype=torch.int64)
    return named(trace(DecoderGraph(model), (tokens,), (shape,), ["tokens"], ["images"]))


def trace_encoder(model: ImageTokenizer) -> ir.Model:
    """The reverse of `trace_decoder`."""
    side = model.downsampling
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    shape = {0: torch.export.Dim("images"), 1: side * rows, 2: side * columns}
    pixels = torch.zeros(2, 3 * side, 5 * side, 3, dtype=torch.uint8)
    return named(trace(EncoderGraph(model), (pixels,), (shape,), ["images"], ["tokens"]))


def named(model: ir.Model) -> ir.Model:
    """Call the dimensions of inputs and outputs what they are, rather than what the tracer derived."""
    shapes = {"tokens": ("images", "rows", "columns"), "images": ("images", "height", "width", 3)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.name is not None
        value.shape = ir.Shape(shapes[value.name])
    return model
