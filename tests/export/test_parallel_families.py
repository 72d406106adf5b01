"""PAR and ARPG from checkpoint to tokens, against a reference that has no cache and recomputes every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ARPG_CONFIG, random_weights
from torch import Tensor, nn

from arforge.engines import onnxruntime
from arforge.engines.verify import verify_bundle
from arforge.export.exporter import ExportJob, export_bundle
from arforge.export.families import par
from arforge.export.families.par import PARConfig
from arforge.export.verify import compare_logits, load_module
from arforge.runner import Runner, ScheduleError, compile_schedule, open_bundle
from arforge.runner.schedules.regions import region_order

PAR_CONFIG = PARConfig(dim=40, n_layer=2, n_head=2, grid=(8, 8), vocab_size=32, num_classes=10, multiple_of=32)
GUIDANCE = 2.0
CLASSES = [0, 3, 9]


@pytest.fixture(scope="module")
def par_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("par")
    torch.save(random_weights(PAR_CONFIG, seed=4, family=par.FAMILY), folder / "tiny.pt")
    path = folder / "par.bundle"
    export_bundle(ExportJob(par.FAMILY, PAR_CONFIG, folder / "tiny.pt", None, path))
    onnxruntime.build(path)
    return path


def guided(logits: Tensor, scale: float) -> Tensor:
    conditional, unconditional = logits.chunk(2)
    return (unconditional + (conditional - unconditional) * scale).argmax(-1)


@torch.no_grad()
def par_reference(module: nn.Module) -> Tensor:
    """The whole sequence again for every group: class, first cells, transition tokens, all groups but the last."""
    config, regions = PAR_CONFIG, PAR_CONFIG.regions
    order = torch.tensor(region_order(config.grid, regions))
    first = torch.tensor(CLASSES) + config.vocab_size
    sequence = torch.cat([first, torch.full_like(first, config.null_class)])[:, None]
    positions = torch.zeros(1, dtype=torch.int64)
    tokens = torch.empty(len(CLASSES), 0, dtype=torch.int64)
    while tokens.shape[1] < config.cells:
        places = torch.arange(sequence.shape[1])
        group = torch.where(places < regions, places, places // regions * regions)
        logits, _ = module(sequence, positions.expand_as(sequence), group[None, :] <= group[:, None])
        count = 1 if tokens.shape[1] < regions else regions
        new = guided(logits[:, -count:], GUIDANCE)
        tokens = torch.cat([tokens, new], dim=1)
        cells = 1 + order[tokens.shape[1] - count : tokens.shape[1]]
        sequence, positions = torch.cat([sequence, new.repeat(2, 1)], dim=1), torch.cat([positions, cells])
        if tokens.shape[1] == regions:
            transition = config.first_special + torch.arange(regions - 1)
            sequence = torch.cat([sequence, transition.expand(len(sequence), -1)], dim=1)
            positions = torch.cat([positions, torch.zeros(regions - 1, dtype=torch.int64)])
    result = torch.empty_like(tokens)
    result[:, order] = tokens
    return result


@torch.no_grad()
def arpg_reference(module: nn.Module, text: str) -> Tensor:
    """All known tokens again for every step, each seeing its own group and those before; queries see them all."""
    config, schedule = ARPG_CONFIG, compile_schedule(text, ARPG_CONFIG.grid)
    first = torch.tensor(CLASSES) + config.first_class
    known = torch.cat([first, torch.full_like(first, config.null_class)])[:, None]
    positions, groups = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    result = torch.empty(len(CLASSES), config.cells, dtype=torch.int64)
    decided = 0
    for index, step in enumerate(schedule.steps):
        cells = torch.tensor([target.cell for target in step.targets])
        decided += len(cells)
        asked = (1 + cells).expand(len(known), -1)
        everything = torch.ones(len(cells), known.shape[1], dtype=torch.bool)
        mask = groups[None, :] <= groups[:, None]
        logits, _ = module(known, positions.expand_as(known), mask, asked, everything)
        share = 1.0 if "constant" in text else decided / config.cells
        result[:, cells] = new = guided(logits, 1 + (GUIDANCE - 1) * share)
        known = torch.cat([known, new.repeat(2, 1)], dim=1)
        positions = torch.cat([positions, 1 + cells])
        groups = torch.cat([groups, torch.full_like(cells, index + 1)])
    return result


def test_par_tokens_are_those_of_the_reference(par_bundle: Path) -> None:
    expected = par_reference(load_module(open_bundle(par_bundle)))
    with Runner.open(par_bundle, threads=1) as runner:
        result = runner.generate(CLASSES, schedule="par:4", guidance=GUIDANCE, greedy=True)
    assert result.steps == 19
    assert result.tokens.tolist() == expected.tolist()
    assert len(np.unique(result.tokens)) > 5


@pytest.mark.parametrize(
    "text", ["arpg:1", "arpg:5", "arpg:24", "arpg:9,ratio=cosine", "arpg:9,cfg=constant", "arpg:9,order=3"]
)
def test_arpg_tokens_are_those_of_the_reference(arpg_bundle: Path, arpg_runner: Runner, text: str) -> None:
    expected = arpg_reference(load_module(open_bundle(arpg_bundle)), text)
    result = arpg_runner.generate(CLASSES, schedule=text, guidance=GUIDANCE, greedy=True)
    assert result.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["arpg:5", "arpg:24"])
def test_arpg_images_do_not_depend_on_their_batch(arpg_runner: Runner, text: str) -> None:
    together = arpg_runner.generate(CLASSES, seeds=[5, 6, 7], schedule=text).tokens
    alone = arpg_runner.generate(CLASSES[1:2], seeds=[6], schedule=text).tokens
    assert (alone[0] == together[1]).all()


def test_steps_padded_to_fixed_widths_give_the_same_tokens(arpg_bundle: Path, arpg_runner: Runner) -> None:
    expected = arpg_runner.generate(CLASSES, schedule="arpg:7", guidance=GUIDANCE).tokens
    onnxruntime.build(arpg_bundle, widths=[3, 16])
    try:
        with Runner.open(arpg_bundle, threads=1) as padded:
            assert (padded.generate(CLASSES, schedule="arpg:7", guidance=GUIDANCE).tokens == expected).all()
    finally:
        onnxruntime.build(arpg_bundle)


@pytest.mark.parametrize("name", ["par_bundle", "arpg_bundle"])
def test_bundles_verify_with_and_without_torch(name: str, request: pytest.FixtureRequest) -> None:
    lines: list[str] = []
    bundle = verify_bundle(request.getfixturevalue(name), lines.append)
    # structure, hashes, data of the graphs, one engine with two lines
    assert len(lines) == 5 + len(bundle.schedules) + len(bundle.graphs)
    for entry in bundle.schedules:
        assert compare_logits(bundle, entry.specification, max_steps=64).same_tokens == 1.0


def test_schedules_of_another_family_or_size_are_refused(par_bundle: Path, arpg_bundle: Path) -> None:
    with pytest.raises(ScheduleError, match="decodes in raster order, this model in regions order: use one of par"):
        open_bundle(par_bundle).schedule("zipar:4")
    with pytest.raises(ScheduleError, match="decodes in regions order, this model in random order: use one of arpg"):
        open_bundle(arpg_bundle).schedule("par:4")
    with pytest.raises(ScheduleError, match="needs 15 special tokens.*trained with 3"):
        open_bundle(par_bundle).schedule("par:16")


def test_a_schedule_for_other_regions_is_not_stored(par_bundle: Path) -> None:
    folder = par_bundle.parent
    job = ExportJob(par.FAMILY, PAR_CONFIG, folder / "tiny.pt", None, folder / "other.bundle", ["par:16"])
    with pytest.raises(ScheduleError, match="par:16 needs 15 special tokens.*trained with 3"):
        export_bundle(job)
    assert not job.output.exists()


def test_arpg_keeps_one_cache_a_self_attention_layer_and_one_shared(arpg_bundle: Path, par_bundle: Path) -> None:
    assert open_bundle(arpg_bundle).model.caches == ARPG_CONFIG.n_layer // 2 + 1
    assert open_bundle(par_bundle).model.caches == PAR_CONFIG.n_layer
