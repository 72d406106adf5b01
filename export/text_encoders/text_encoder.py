"""A text encoder in a folder, opened and checked; and its graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from arforge.export.checkpoint import Checkpoint, open_checkpoint
from arforge.export.recognition import check_shapes
from arforge.export.rows import Values
from arforge.export.text_encoders import t5
from arforge.export.text_encoders.t5_config import T5Config
from arforge.export.text_encoders.word_tokenizer import read_word_tokenizer
from arforge.export.trace import fake_module, trace
from arforge.runner.errors import CheckpointError

CONFIG = "config.json"
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What weights are stored as, by precision. They compute in float32; T5's activations overflow in float16."""


@dataclass(frozen=True)
class TextEncoder:
    config: T5Config
    checkpoint: Checkpoint  # the encoder's tensors alone, by the names of `t5.checkpoint_shapes`
    tokenizer: bytes  # of a `tokenizer.json`
    notes: tuple[str, ...]  # on what was chosen, left out and changed

    @property
    def width(self) -> int:
        """Numbers of a row of features."""
        return self.config.d_model

    @property
    def vocabulary(self) -> int:
        return self.config.vocab_size

    @property
    def layers(self) -> int:
        return self.config.num_layers

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.checkpoint.shapes.values())

    def parameter(self, name: str) -> Values:
        """The value of a parameter of the module."""
        return t5.parameter(self.config, self.checkpoint.rows, name)

    def graph(self, precision: str = "fp32") -> ir.Model:
        """The graph `text`, its weights by name: int64 `ids` and `mask` [prompts, length] to float32 `features`.

        Raises CheckpointError for a precision that is none of STORED.
        """
        check_precision(precision)
        model, mode = fake_module(lambda: stored_as(t5.T5Encoder(self.config), STORED[precision]))
        shape = {0: torch.export.Dim("prompts"), 1: torch.export.Dim("length")}
        with mode:
            ids, mask = (torch.ones(2, 5, dtype=torch.int64) for _ in range(2))
            traced = trace(model, (ids, mask), (shape, shape), ["ids", "mask"], ["features"])
        for value in (*traced.graph.inputs, *traced.graph.outputs):
            rows = ("prompts", "length")
            value.shape = ir.Shape(rows if value.name != "features" else (*rows, self.width))
        return traced


def open_text_encoder(folder: Path, width: int | None = None) -> TextEncoder:
    """Open a folder in the hub's layout: `config.json`, weights, and `tokenizer.json` or `spiece.model`.

    `width`: of the features that a model reads. Raises CheckpointError if a part is missing, damaged or of another
    model, or if the features have another width; ArforgeError if a package that reads tokenizers is missing.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise CheckpointError(
            f"{folder} {what}: name the folder of a text encoder, with {CONFIG}, its weights and its tokenizer"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}: name the folder of a text encoder in the hub's layout")
    config = T5Config.read(folder / CONFIG)
    if width is not None and config.d_model != width:
        raise CheckpointError(
            f"{folder} gives features of {config.d_model} numbers, the model reads {width}: use the text encoder that "
            "the model was trained with"
        )
    whole = open_checkpoint(folder)
    names = t5.encoder_tensors(whole.tensors)
    checkpoint = replace(whole, tensors={name: whole.tensors[stored] for name, stored in names.items()})
    check_shapes(checkpoint, t5.checkpoint_shapes(config), t5.TITLE, f"its {CONFIG}")
    tokenizer, changes = read_word_tokenizer(folder, config.eos_token_id, config.vocab_size)
    left = len(whole.tensors) - len(names)
    notes = [*whole.notes, *([f"left out {left} tensors that are not the encoder's"] if left else []), *changes]
    return TextEncoder(config, checkpoint, tokenizer, tuple(notes))


def stored_as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a module parameters of that type, in place. `to` does not take those without values."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().to(dtype)))
    return module


def check_precision(precision: str) -> None:
    """Raise CheckpointError for a precision that text encoders are not stored in."""
    if precision == "fp16":
        raise CheckpointError("a T5 overflows in fp16: store the text encoder in fp32 or bf16")
    if precision not in STORED:
        raise CheckpointError(f"a text encoder is not stored in {precision}: use {' or '.join(STORED)}")
