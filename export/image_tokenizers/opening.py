"""Opens the checkpoint of an image tokenizer: a file of its own, or the model that it is a part of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arforge.export.checkpoint import Checkpoint, open_checkpoint, some
from arforge.export.image_tokenizers import IMAGE_TOKENIZERS
from arforge.export.image_tokenizers.image_tokenizer import Configuration, ImageTokenizer, ImageTokenizerKind, Shape
from arforge.export.image_tokenizers.layout import CODEBOOK, Layout, layout_of
from arforge.export.recognition import check_shapes, looks_like
from arforge.export.trace import fake_module
from arforge.runner.errors import CheckpointError

TRAINING = ("loss.", "discriminator.")  # what trained a tokenizer, beside it
ENCODING = ("encoder.", "quant_conv.")


@dataclass(frozen=True)
class OpenedImageTokenizer:
    kind: ImageTokenizerKind[Any]
    config: Configuration
    checkpoint: Checkpoint
    layout: Layout
    shapes: dict[str, Shape]  # of the module's parameters

    def module(self) -> ImageTokenizer:
        return self.kind.module(self.config)

    def parameter(self, name: str) -> Tensor:
        """One of the module's, by its name there."""
        return self.kind.parameter(self.checkpoint.tensor(self.layout.name(name)), self.shapes[name])

    def dtype(self, name: str) -> torch.dtype:
        """What the checkpoint has a parameter in."""
        return self.checkpoint.rows(self.layout.name(name)).dtype


def open_image_tokenizer(path: Path, vocabulary: int, table: str | None = None) -> OpenedImageTokenizer:
    """Open the checkpoint of an image tokenizer and read kind, layout and dimensions off it.

    Raises CheckpointError if it is none, has no decoder, or has other than `vocabulary` codes.
    """
    whole = open_checkpoint(path, table, averaged=True, option="--image-tokenizer-weights")
    kind = kind_of(whole.shapes)
    try:
        layout = layout_of(whole.shapes)
        checkpoint = part_of(whole, layout)
        config = kind.infer(checkpoint.shapes, layout)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path} is not a {kind.title} checkpoint (missing {error}). {looks_like(whole)}"
        ) from error
    problem = kind.problem(config)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    model, _ = fake_module(lambda: kind.module(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {layout.name(name): kind.stored_shape(name, shape, layout) for name, shape in shapes.items()}
    check_shapes(checkpoint, stored, kind.title)
    if config.codebook_size != vocabulary:
        raise CheckpointError(
            f"{path} has {config.codebook_size} codes, the model {vocabulary} tokens: "
            "use the tokenizer that the model was trained with"
        )
    return OpenedImageTokenizer(kind, config, checkpoint, layout, shapes)


def kind_of(names: Collection[str]) -> ImageTokenizerKind[Any]:
    """The kind whose signs a checkpoint shows most of."""
    first = next(iter(IMAGE_TOKENIZERS.values()))
    return max((kind for kind in IMAGE_TOKENIZERS.values() if kind.fits(names)), key=sign_length, default=first)


def sign_length(kind: ImageTokenizerKind[Any]) -> int:
    return len(kind.sign)


def part_of(whole: Checkpoint, layout: Layout) -> Checkpoint:
    """The tensors of the tokenizer alone. Raises CheckpointError if they have no decoder."""
    inside = {name: name.removeprefix(layout.prefix) for name in whole.tensors if name.startswith(layout.prefix)}
    parts = {own.partition(".")[0] for own in inside.values()}
    if layout.name(CODEBOOK) in inside and "encoder" in parts and "decoder" not in parts:
        raise CheckpointError(
            f"{whole.path} has the encoder of an image tokenizer and no decoder, which makes the images: "
            "use the checkpoint of the whole tokenizer"
        )
    unused = [name for name, own in inside.items() if own.startswith(TRAINING)]
    if "encoder" not in parts:
        unused += [name for name, own in inside.items() if own.startswith(ENCODING)]
    notes = (
        f"took its image tokenizer, {layout.prefix}*" if layout.prefix else "",
        f"left out what decodes no images: {some(unused)}" if unused else "",
    )
    tensors = {name: whole.tensors[name] for name in inside if name not in unused}
    numbers = tuple(name for name in whole.whole_numbers if name in inside)
    return replace(
        whole, tensors=tensors, whole_numbers=numbers, notes=(*whole.notes, *(note for note in notes if note))
    )
