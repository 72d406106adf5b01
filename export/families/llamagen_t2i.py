"""LlamaGen, text-conditional (arXiv 2406.06525): captions stand before the image as rows of features.

The decoder is the class-conditional one's. A caption's features pass a small network (`cap_proj`), which is a graph of
its own; all of a caption's rows have no position, which leaves their queries and keys zero. What stands for no caption
are the last rows of a table of 120, as many as the caption has. The table was drawn at random when training began and
never trained: another draw is another model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llamagen
from arforge.export.families.family import PROMPT_SLOTS, Family, Shapes, Size
from arforge.export.families.llamagen import Dimensions, LlamaGen
from arforge.export.rows import Rows
from arforge.runner.bundle import FeaturesCondition, SamplerDefaults
from arforge.runner.errors import CheckpointError

VARIANTS = {"XL": llamagen.VARIANTS["XL"], "1B": Size(22, 32, 2048), "3B": Size(24, 32, 3200), "7B": Size(32, 32, 4096)}
NO_CAPTION = "cls_embedding.uncond_embedding"


@dataclass(frozen=True)
class LlamaGenTextConfig(Dimensions):
    caption_dim: int = 2048  # of the text encoder's features
    caption_slots: int = 120  # rows of the longest caption
    prompt_slots: int | None = None  # fewer, to hold less memory

    @property
    def slots(self) -> int:
        return self.prompt_slots or self.caption_slots

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.slots > self.caption_slots:
            yield (
                f"prompt_slots {self.prompt_slots} is more than the {self.caption_slots} rows that stand for no caption"
            )


class CaptionProjection(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    def __init__(self, config: LlamaGenTextConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config.caption_dim, config.dim)
        self.uncond_embedding = nn.Parameter(torch.zeros(config.caption_slots, config.caption_dim))


class CaptionGraph(nn.Module):
    """From features [prompts, length, caption_dim] to rows of the condition, and to those that stand for no caption."""

    def __init__(self, config: LlamaGenTextConfig) -> None:
        super().__init__()
        self.cls_embedding = CaptionEmbedding(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        project, table = self.cls_embedding.cap_proj, self.cls_embedding.uncond_embedding
        length = features.shape[1]
        last = torch.arange(length, device=features.device) + (table.shape[0] - length)
        return project(features), project(table.index_select(0, last)[None])[0]


def checkpoint_shapes(config: LlamaGenTextConfig) -> Shapes:
    """The tensors of the authors' checkpoints."""
    with torch.device("meta"):
        parts = (LlamaGen(config), CaptionGraph(config))
    return {name: tuple(tensor.shape) for part in parts for name, tensor in part.state_dict().items()}


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    if NO_CAPTION not in shapes:
        raise CheckpointError(
            f"the checkpoint has no {NO_CAPTION}, the rows that stand for no caption: they were drawn when training "
            "began, so no others will do. Use the file as its authors saved it, buffers included"
        )
    slots, width = shapes[NO_CAPTION]
    return {**llamagen.infer_decoder(shapes, heads), "caption_dim": width, "caption_slots": slots}


def parameter(_: LlamaGenTextConfig, checkpoint: Checkpoint, name: str) -> Rows:
    return checkpoint.rows(name)


def condition(config: LlamaGenTextConfig) -> FeaturesCondition:
    return FeaturesCondition(config.slots, config.caption_dim, captions="clean")


FAMILY = Family(
    name="llamagen-t2i",
    order="raster",
    sign=("cls_embedding.cap_proj.",),
    variants=VARIANTS,
    grids=((16, 16), (32, 32)),
    config=LlamaGenTextConfig,
    required=("dim", "n_layer", "n_head", "vocab_size", "caption_dim", "grid"),
    infer=infer,
    module=LlamaGen,
    condition_module=CaptionGraph,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=condition,
    schedules=llamagen.default_schedules,
    options=(PROMPT_SLOTS,),
    sampler=lambda _: SamplerDefaults(guidance=7.5, temperature=1.0, top_k=1000, top_p=1.0),
)
