"""The widened model computes what the small one does; sizes here are smaller than published ones."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_weights

from arforge.export.checkpoint import open_checkpoint
from arforge.export.families.family import Size
from arforge.export.families.llamagen import FAMILY, VARIANTS, LlamaGen, LlamaGenConfig

BENCH = Path(__file__).parents[2] / "bench"
SMALL = LlamaGenConfig(32, 2, 2, (4, 4), vocab_size=24, num_classes=3, multiple_of=8)
GUIDANCE = 2.0


@pytest.fixture
def widen(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setitem(VARIANTS, "tiny", Size(5, 8, 128))
    import widen

    yield widen
    sys.modules.pop("widen", None)


def module_of(config: LlamaGenConfig, file: Path) -> LlamaGen:
    checkpoint, module = open_checkpoint(file), LlamaGen(config).eval()
    weights = {name: FAMILY.parameter(config, checkpoint, name) for name in module.state_dict()}
    module.load_state_dict({name: rows.tensor() for name, rows in weights.items()})
    return module


def logits(module: LlamaGen, labels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of every cell, float32 [images, cells, vocabulary]."""
    fed = torch.cat([labels[:, None] + module.config.vocab_size, tokens[:, :-1]], dim=1)
    cells = fed.shape[1]
    causal = torch.ones(cells, cells, dtype=torch.bool).tril()
    return module(fed, torch.arange(cells).expand_as(fed), causal)[0]


def greedy(module: LlamaGen, labels: torch.Tensor) -> torch.Tensor:
    """Tokens [images, cells] with guidance."""
    tokens = torch.zeros(len(labels), module.config.cells, dtype=torch.int64)
    nothing = torch.full_like(labels, module.config.num_classes)
    for cell in range(module.config.cells):
        plain = logits(module, nothing, tokens)[:, cell]
        guided = plain + GUIDANCE * (logits(module, labels, tokens)[:, cell] - plain)
        tokens[:, cell] = guided.argmax(-1)
    return tokens


@torch.no_grad()
def test_the_wide_model_computes_the_small_ones_function(widen: ModuleType, tmp_path: Path) -> None:
    weights = random_weights(SMALL, seed=1)
    save_file(weights, tmp_path / "small.safetensors")
    wide_config = widen.widened_config(SMALL, "tiny")
    assert (wide_config.dim, wide_config.n_layer, wide_config.n_head, wide_config.hidden) == (128, 5, 8, 512)
    widened = widen.widen(open_checkpoint(tmp_path / "small.safetensors"), SMALL, wide_config)
    save_file(widened, tmp_path / "wide.safetensors")
    small = module_of(SMALL, tmp_path / "small.safetensors")
    wide = module_of(wide_config, tmp_path / "wide.safetensors")

    tokens = torch.randint(SMALL.vocab_size, (6, SMALL.cells), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    wanted, found = logits(small, labels, tokens), logits(wide, labels, tokens)
    torch.testing.assert_close(found[..., : SMALL.vocab_size], wanted, atol=2e-5 * wanted.abs().max().item(), rtol=0)
    assert found[..., SMALL.vocab_size :].max() < wanted.min() - 30

    drawn = greedy(wide, labels[:3])
    assert torch.equal(drawn, greedy(small, labels[:3]))
    assert len(drawn.unique()) > 4


def test_what_does_not_fit_is_refused(widen: ModuleType) -> None:
    for unlike in ({"n_head": 4}, {"n_layer": 6}, {"dim": 128, "n_head": 8}, {"n_kv_head": 1}):
        with pytest.raises(SystemExit, match="cannot hold this model"):
            widen.widened_config(dataclasses.replace(SMALL, **unlike), "tiny")


def test_the_demo_fits_into_l(widen: ModuleType) -> None:
    wide = widen.widened_config(widen.read_config(widen.FASHION.with_suffix(".json"), FAMILY), "L")
    assert (wide.dim, wide.n_layer, wide.n_head, wide.hidden, wide.vocab_size) == (1024, 24, 16, 2816, 16384)
    assert (wide.grid, wide.num_classes) == ((8, 8), 10)
