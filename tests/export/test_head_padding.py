"""Heads whose size is no multiple of 8 are padded at export; the tokens are those of the torch module without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import GROUPED_CONFIG, random_weights
from torch import Tensor, nn

from arforge.engines import onnxruntime
from arforge.export.checkpoint import open_checkpoint
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families import arpg, llamagen, par
from arforge.export.families.arpg import ARPGConfig
from arforge.export.families.family import Family
from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.families.par import PARConfig
from arforge.export.layers import pad_heads, pad_weight, padded_head
from arforge.export.rows import rows_of
from arforge.export.sampler import guide
from arforge.export.verify import check_weights, compare_logits
from arforge.runner import Runner, open_bundle
from arforge.runner.conditions import class_conditions
from arforge.runner.plan import make_plan

COMMON: dict[str, Any] = {"n_head": 4, "grid": (4, 4), "vocab_size": 32, "num_classes": 10, "multiple_of": 32}
PAR_CONFIG = PARConfig(dim=80, n_layer=1, **COMMON)  # heads of 20 become 24
ARPG_CONFIG = ARPGConfig(dim=80, n_layer=4, **COMMON)
CLASSES = [0, 3]


@dataclass(frozen=True)
class Case:
    family: Family
    config: Any
    schedule: str
    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="module")
def grouped(grouped_bundle: Path) -> Case:
    """Heads of 12, two to a pair of keys and values, become 16."""
    checkpoint = grouped_bundle.parent / "grouped.safetensors"
    return Case(llamagen.FAMILY, GROUPED_CONFIG, "zipar:2", checkpoint, grouped_bundle)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(par.FAMILY, PAR_CONFIG, "par:4", tmp_path_factory.mktemp("par"))


@pytest.fixture(scope="module")
def random_order(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(arpg.FAMILY, ARPG_CONFIG, "arpg:5", tmp_path_factory.mktemp("arpg"))


def export(family: Family, config: Any, schedule: str, folder: Path) -> Case:
    torch.save(random_weights(config, seed=6, family=family), folder / "tiny.pt")
    export_bundle(ExportJob(family, config, folder / "tiny.pt", None, folder / "padded.bundle"))
    onnxruntime.build(folder / "padded.bundle")
    return Case(family, config, schedule, folder / "tiny.pt", folder / "padded.bundle")


@pytest.fixture(params=["grouped", "regions", "random_order"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


@torch.no_grad()
def tokens_of(module: Any, bundle: Path, text: str, guidance: float) -> np.ndarray:
    """Greedy tokens by the module, which is fed step by step with what a runner would feed."""
    opened = open_bundle(bundle)
    plan = make_plan(opened.schedule(text), None)
    rows = 2 * len(CLASSES)
    known = plan.known(opened.model, class_conditions(opened.model, CLASSES).rows(guided=True))
    caches = module.empty_caches(rows, plan.slots)
    for step in plan.steps:
        mask = torch.from_numpy(step.mask).expand(rows, 1, -1, -1)
        given = [torch.from_numpy(known[:, step.columns]), torch.from_numpy(step.positions).expand(rows, -1), mask]
        if opened.model.queries:
            given += [torch.from_numpy(step.query_positions).expand(rows, -1), mask[:, :, -1:]]
        logits, caches = module(*given, torch.full((rows,), step.write_index), caches)
        scale = torch.tensor([step.scale(guidance)])
        chosen = guide(logits, len(CLASSES), scale).argmax(-1).numpy()[:, step.target_rows]
        known[:, step.target_cells] = np.concatenate([chosen, chosen])
    return known[: len(CLASSES), : opened.model.cells]


def true_module(case: Case) -> nn.Module:
    """The module with the true head size and the checkpoint's weights."""
    module, source = case.family.module(case.config).eval(), open_checkpoint(case.checkpoint)
    values = {name: case.family.parameter(case.config, source, name) for name in module.state_dict()}
    module.load_state_dict({name: rows_of(value).tensor() for name, value in values.items()})
    return module


def test_greedy_tokens_are_those_of_the_module_without_padding(case: Case) -> None:
    expected = tokens_of(true_module(case), case.bundle, case.schedule, guidance=2.0)
    with Runner.open(case.bundle, threads=1) as runner:
        found = runner.generate(CLASSES, schedule=case.schedule, guidance=2.0, greedy=True).tokens
    assert found.tolist() == expected.tolist()
    assert len(np.unique(found)) > 4


def test_the_bundle_states_the_size_of_its_caches(case: Case) -> None:
    opened = open_bundle(case.bundle)
    assert opened.model.head_size == padded_head(case.config.head_size) > case.config.head_size
    graph = onnx.load(opened.graph("step", "fp32"), load_external_data=False).graph
    cache = next(value for value in graph.input if value.name == "key_cache_0")
    assert cache.type.tensor_type.shape.dim[3].dim_value == opened.model.head_size
    scales = [a.f for n in graph.node if n.op_type == "Attention" for a in n.attribute if a.name == "scale"]
    assert scales == pytest.approx([case.config.head_size**-0.5] * case.config.n_layer)


def test_padded_bundles_verify_against_module_and_checkpoint(case: Case) -> None:
    opened = open_bundle(case.bundle)
    assert compare_logits(opened, case.schedule, max_steps=64).same_tokens == 1.0
    assert check_weights(opened, case.checkpoint) >= 10


def test_padding_puts_zeros_behind_each_head() -> None:
    weight = torch.arange(1, 25, dtype=torch.float32).reshape(24, 1)  # two heads of 12
    padded = pad_weight("layers.0.attention.wqkv.weight", weight, 12)
    assert padded.shape == (32, 1)
    assert padded[:, 0].tolist() == [*range(1, 13), 0, 0, 0, 0, *range(13, 25), 0, 0, 0, 0]
    turned = pad_weight("layers.0.attn.proj.weight", weight.T, 12)
    assert torch.equal(turned, padded.T)
    assert torch.equal(pad_weight("cosine", torch.ones(3, 6), 12), torch.tensor([[1.0] * 6 + [0.0] * 2] * 3))


@pytest.mark.parametrize(
    "name", ["layers.0.feed_forward.w1.weight", "tok_embeddings.weight", "layers.0.attn_norm.weight"]
)
def test_what_has_no_heads_stays(name: str) -> None:
    weight: Tensor = torch.ones(24, 24)
    assert pad_weight(name, weight, 12) is weight


def test_a_size_that_fits_stays_as_it_is() -> None:
    module = llamagen.LlamaGen(LlamaGenConfig(dim=64, n_layer=1, **COMMON))
    before = {name: value.shape for name, value in module.state_dict().items()}
    assert pad_heads(module, 16) is module
    assert {name: value.shape for name, value in module.state_dict().items()} == before
    assert module.layers[0].attention.scale is None
    assert [padded_head(size) for size in (4, 8, 12, 64, 100)] == [8, 8, 16, 64, 104]
