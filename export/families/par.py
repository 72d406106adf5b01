"""PAR, parallel autoregressive generation (arXiv 2412.15119): LlamaGen with embeddings for its transition step.

The grid is cut into `regions` regions; after one token of each, every step decides one token in every region
(`runner/schedules/regions.py`). The network is LlamaGen's; only the table of tokens is longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from arforge.export.checkpoint import Checkpoint
from arforge.export.families import llamagen
from arforge.export.families.family import Family, Option, Shapes, Size
from arforge.export.families.llamagen import LlamaGen, LlamaGenConfig
from arforge.export.rows import Rows, concatenate
from arforge.runner.bundle import SamplerDefaults
from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.regions import region_order

VARIANTS = {name: llamagen.VARIANTS[name] for name in ("L", "XL", "XXL", "3B")}
TRANSITION_EMBEDDING = "spe_tok_embeddings.special_embeddings.weight"


@dataclass(frozen=True)
class PARConfig(LlamaGenConfig):
    regions: int = 4

    @property
    def transition_tokens(self) -> int:
        return self.regions - 1

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        try:
            region_order(self.grid, self.regions)
        except ScheduleError as error:
            yield str(error)


class PAR(LlamaGen):
    """Ids as LlamaGen's, then the transition tokens."""


def checkpoint_shapes(config: PARConfig) -> Shapes:
    """The tensors of the authors' checkpoints."""
    return {
        **llamagen.checkpoint_shapes(config),
        TRANSITION_EMBEDDING: (config.transition_tokens, config.dim),
    }


def parameter(config: PARConfig, checkpoint: Checkpoint, name: str) -> Rows:
    """A parameter of `PAR` from the authors' checkpoint: the three embedding tables become one."""
    rows = llamagen.parameter(config, checkpoint, name)
    if name == llamagen.EMBEDDING:
        return concatenate([rows, checkpoint.rows(TRANSITION_EMBEDDING)])
    return rows


def infer(shapes: Shapes, heads: Callable[[int, int], int]) -> dict[str, Any]:
    """The dimensions that the tensors tell (`Family.infer`)."""
    return {**llamagen.infer(shapes, heads), "regions": shapes[TRANSITION_EMBEDDING][0] + 1}


def specials(config: PARConfig) -> tuple[int, ...]:
    """The transition tokens, in the order of the regions that they stand for."""
    return tuple(range(config.first_special, config.tokens))


def default_sampler(config: PARConfig) -> SamplerDefaults:
    """The authors', who guide larger models less, but for 16 regions."""
    scales = {VARIANTS["XXL"]: 1.435, VARIANTS["3B"]: 1.345} if config.regions == 4 else {}
    guidance = scales.get(Size(config.n_layer, config.n_head, config.dim), 1.5)
    return SamplerDefaults(guidance, temperature=1.0, top_k=0, top_p=1.0)


FAMILY = Family(
    name="par",
    order="regions",
    sign=(*llamagen.FAMILY.sign, "spe_tok_embeddings"),
    variants=VARIANTS,
    grids=((24, 24),),
    config=PARConfig,
    required=llamagen.REQUIRED,
    infer=infer,
    module=PAR,
    checkpoint_shapes=checkpoint_shapes,
    parameter=parameter,
    condition=llamagen.condition,
    specials=specials,
    schedules=lambda config: [f"par:{config.regions}"],
    sampler=default_sampler,
    options=(Option("regions", (4, 16), "Regions that the model decodes at once."),),
)
