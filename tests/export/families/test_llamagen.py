from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from oracle import Decoder
from tiny import CONFIG, GROUPED_CONFIG, random_weights
from torch import Tensor

from arforge.export.config import variant_config
from arforge.export.families.llamagen import FAMILY, VARIANTS, LlamaGen, LlamaGenConfig, checkpoint_shapes


def module_of(config: LlamaGenConfig, weights: dict[str, Tensor]) -> LlamaGen:
    module = LlamaGen(config).eval()
    names = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight")
    joined = {"tok_embeddings.weight": torch.cat([weights[name] for name in names])}
    module.load_state_dict({**{k: v for k, v in weights.items() if k not in names}, **joined})
    return module


@pytest.mark.parametrize("config", [CONFIG, GROUPED_CONFIG], ids=["square", "grouped"])
@torch.no_grad()
def test_the_module_equals_the_plain_reference(config: LlamaGenConfig) -> None:
    weights = random_weights(config, seed=5)
    plain = Decoder(
        weights, config.n_head, config.grid, kv_heads=config.kv_heads, eps=config.norm_eps, base=config.rope_base
    )
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.cells))
    expected = oracle.teacher_forced(plain, [0, 3], tokens, guidance=1.0)
    labels = torch.tensor([0, 3])[:, None] + config.vocab_size
    fed = torch.cat([labels, torch.from_numpy(tokens[:, :-1])], dim=1)
    causal = torch.ones(config.cells, config.cells, dtype=torch.bool).tril()
    positions = torch.arange(config.cells).expand_as(fed)
    logits, _ = module_of(config, weights)(fed, positions, causal)
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("B", 110.9e6), ("L", 343.3e6), ("XL", 775.3e6), ("XXL", 1.411e9), ("3B", 3.096e9)],
)
def test_published_sizes_have_the_published_parameters(name: str, parameters: float) -> None:
    shapes = checkpoint_shapes(variant_config(FAMILY, name, (24, 24)))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(parameters, rel=0.01)
    assert shapes["cls_embedding.embedding_table.weight"][0] == 1001
    assert shapes["output.weight"][0] == 16384


def test_variants_are_those_of_the_paper() -> None:
    assert VARIANTS == {
        "B": (12, 12, 768),
        "L": (24, 16, 1024),
        "XL": (36, 20, 1280),
        "XXL": (48, 24, 1536),
        "3B": (24, 32, 3200),
    }
    assert variant_config(FAMILY, "3B", (16, 16)).head_size == 100


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "hidden"),
    [(768, 256, None, 2048), (1024, 256, None, 2816), (3200, 256, None, 8704), (48, 20, 1.1, 140), (64, 32, None, 192)],
)
def test_feed_forward_widths(dim: int, multiple_of: int, multiplier: float | None, hidden: int) -> None:
    config = LlamaGenConfig(dim, 1, 4, (4, 4), multiple_of=multiple_of, ffn_dim_multiplier=multiplier)
    assert config.hidden == hidden


def test_checkpoint_names_are_the_authors() -> None:
    names = set(checkpoint_shapes(CONFIG))
    layer = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    norms = ("attention_norm", "ffn_norm")
    expected = {f"layers.{index}.{name}.weight" for index in range(2) for name in (*layer, *norms)}
    top = {"tok_embeddings.weight", "cls_embedding.embedding_table.weight", "norm.weight", "output.weight"}
    assert names == expected | top
