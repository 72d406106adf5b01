"""The dimensions and weights of the tiny models that the tests export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arforge.export.families import arpg, llamagen, par
from arforge.export.families.arpg import ARPGConfig
from arforge.export.families.emu3 import Emu3Config
from arforge.export.families.family import Family
from arforge.export.families.janus import JanusConfig
from arforge.export.families.llamagen import Dimensions, LlamaGenConfig
from arforge.export.families.llamagen_t2i import LlamaGenTextConfig
from arforge.export.families.par import PARConfig
from arforge.export.image_tokenizers.vq import VQConfig

CONFIG = LlamaGenConfig(dim=64, n_layer=2, n_head=4, grid=(8, 8), vocab_size=32, num_classes=10, multiple_of=32)
GROUPED_CONFIG = LlamaGenConfig(
    dim=48,
    n_layer=3,
    n_head=4,
    n_kv_head=2,
    grid=(4, 6),
    vocab_size=29,
    num_classes=7,
    multiple_of=20,
    ffn_dim_multiplier=1.1,
    norm_eps=1e-6,
    rope_base=500.0,
)
ARPG_CONFIG = ARPGConfig(dim=64, n_layer=4, n_head=4, grid=(4, 6), vocab_size=32, num_classes=10, multiple_of=32)
PAR_CONFIG = PARConfig(dim=40, n_layer=1, n_head=2, grid=(8, 8), vocab_size=32, num_classes=10, multiple_of=32)
TEXT_CONFIG = LlamaGenTextConfig(
    dim=64, n_layer=2, n_head=4, grid=(8, 8), vocab_size=32, multiple_of=32, caption_dim=48, caption_slots=120
)
SMALL: dict[str, Any] = {"dim": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "grid": (4, 4), "multiple_of": 32}
EMU3_CONFIG = Emu3Config(
    **SMALL, vocab_size=32, words=128, first_image=96, row_end=70, first_word=71, image_word=72, size_word=73
)
JANUS_CONFIG = JanusConfig(**SMALL, vocab_size=32, words=100100)
VQ_CONFIG = VQConfig(codebook_size=32, codebook_width=8, channels=32, multipliers=(1, 2), latent_channels=64)


def random_weights(config: Dimensions, seed: int, family: Family = llamagen.FAMILY) -> dict[str, Tensor]:
    """Weights whose greedy tokens vary from cell to cell."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in family.checkpoint_shapes(config).items():
        values = torch.randn(shape, generator=random)
        if "norm" in name:
            weights[name] = 1 + 0.1 * values
        elif "uncond_embedding" in name:
            weights[name] = values / shape[1] ** 0.5  # as training draws them
        else:
            weights[name] = values * (
                1.0 if "embedding" in name else 0.2 if family in (arpg.FAMILY, par.FAMILY) else 0.15
            )
    return weights
