"""PAR, parallel autoregressive generation (arXiv 2412.15119): LlamaGen with embeddings for its transition step.

The grid is cut into `regions` regions; after one token of each, every step decides one token in every region
(`runner/schedules/regions.py`). The network is LlamaGen's; only the table of tokens is longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llamagen
from arforge.export.families.family import Family
from arforge.export.families.llamagen import LlamaGen, LlamaGenConfig

VARIANTS = {name: llamagen.VARIANTS[name] for name in ("L", "XL", "XXL", "3B")}
TRANSITION_EMBEDDING = "spe_tok_embeddings.special_embeddings.weight"


@dataclass(frozen=True)
class PARConfig(LlamaGenConfig):
    regions: int = 4

    @property
    def transition_tokens(self) -> int:
        return self.regions - 1


class PAR(LlamaGen):
    """Ids as LlamaGen's, then the transition tokens."""


def checkpoint_shapes(config: PARConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the authors' checkpoints."""
    return {
        **llamagen.checkpoint_shapes(config),
        TRANSITION_EMBEDDING: (config.transition_tokens, config.dim),
    }


def parameter(checkpoint: Checkpoint, name: str) -> Tensor:
    """A parameter of `PAR` from the authors' checkpoint: the three embedding tables become one."""
    tensor = llamagen.parameter(checkpoint, name)
    if name == llamagen.EMBEDDING:
        return torch.cat([tensor, checkpoint.tensor(TRANSITION_EMBEDDING)])
    return tensor


FAMILY = Family(
    name="par",
    variants=VARIANTS,
    order="regions",
    default_grid=(24, 24),
    config=PARConfig,
    module=PAR,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    schedules=lambda config: [f"par:{config.regions}"],
)
