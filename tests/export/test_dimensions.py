"""What a checkpoint tells of its model by itself, and what has to be asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARPG_CONFIG, CONFIG, GROUPED_CONFIG, PAR_CONFIG
from torch import Tensor

from arforge.export.checkpoint import Checkpoint
from arforge.export.config import variant_config
from arforge.export.dimensions import Named, model_of
from arforge.export.families import FAMILIES
from arforge.export.families.family import Configuration, Grid
from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.recognition import family_of, kind_of
from arforge.export.tensor_files import StoredTensor
from arforge.runner.errors import CheckpointError

SIZES = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]


def checkpoint_of(family: str, config: Configuration, name: str = "x.pt") -> Checkpoint:
    """A checkpoint of these dimensions without data."""

    def read(first: int, end: int) -> Tensor:
        raise AssertionError(f"dimensions are read without reading weights [{first}, {end})")

    shapes = FAMILIES[family].checkpoint_shapes(config)
    tensors = {key: StoredTensor(shape, torch.float32, read) for key, shape in shapes.items()}
    return Checkpoint(Path(name), (Path(name),), "model", tensors, (), ())


def told(checkpoint: Checkpoint, **named: Any) -> tuple[str, Configuration, str]:
    lines: list[str] = []
    family, config = model_of(checkpoint, Named(**named), lines.append)
    return family.name, config, "\n".join(lines)


@pytest.mark.parametrize(("family", "variant"), SIZES)
def test_family_and_size_of_every_published_checkpoint_are_read_off_it(family: str, variant: str) -> None:
    config = variant_config(FAMILIES[family], variant, (24, 24))
    found, dimensions, said = told(checkpoint_of(family, config), grid=(24, 24))
    assert (found, dimensions) == (family, config)
    assert f"{family} {variant} ({config.n_layer} layers of {config.n_head} heads, width {config.dim}" in said


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("c2i_L_256.pt", (16, 16)),
        ("c2i_L_384.pt", (24, 24)),
        ("L-512px.safetensors", (32, 32)),
        ("step_256-c2i_384.pt", (24, 24)),
    ],
)
def test_the_grid_that_a_name_tells_is_taken_and_said(name: str, grid: Grid) -> None:
    config = variant_config(FAMILIES["llamagen"], "L", grid)
    _, dimensions, said = told(checkpoint_of("llamagen", config, name))
    assert dimensions == config
    assert f"{name}: a grid of {grid[0]}x{grid[1]}, since the name says" in said
    _, dimensions, said = told(checkpoint_of("llamagen", config, name), grid=(8, 8))
    assert dimensions.grid == (8, 8)
    assert "the name says" not in said


@pytest.mark.parametrize("name", ["model.pt", "c2i_L.pt", "epoch256.pt", "2560.pt", "256-to-512.pt", "x1256.pt"])
@pytest.mark.parametrize("variant", ["L", None])
def test_a_grid_that_nothing_tells_is_asked_for(name: str, variant: str | None) -> None:
    checkpoint = checkpoint_of("llamagen", variant_config(FAMILIES["llamagen"], "L", (16, 16)), name)
    with pytest.raises(CheckpointError, match="tell the grid of tokens .*: give it by --grid .*16x16 for 256 pixels"):
        told(checkpoint, family="llamagen", variant=variant)


@pytest.mark.parametrize(("family", "grid"), [("par", (24, 24)), ("arpg", (16, 16))])
def test_the_one_grid_of_all_published_checkpoints_is_taken_and_said(family: str, grid: Grid) -> None:
    config = variant_config(FAMILIES[family], "XL", grid)
    _, dimensions, said = told(checkpoint_of(family, config))
    assert dimensions == config
    assert f"a grid of {grid[0]}x{grid[1]}, as all published {family} checkpoints have (--grid sets another)" in said


@pytest.mark.parametrize("variant", ["3B", None])
def test_regions_are_read_off_the_transition_tokens(variant: str | None) -> None:
    config = variant_config(FAMILIES["par"], "3B", (24, 24), regions=16)
    assert told(checkpoint_of("par", config), variant=variant)[1] == config
    with pytest.raises(CheckpointError, match=r"spe_tok\S+ is \[15, 3200\], expected \[3, 3200\]"):
        told(checkpoint_of("par", config), variant=variant, options={"regions": 4})
    with pytest.raises(CheckpointError, match="--regions goes with the par family, this is arpg"):
        told(checkpoint_of("arpg", ARPG_CONFIG), options={"regions": 4})


@pytest.mark.parametrize(("family", "config"), [("llamagen", CONFIG), ("par", PAR_CONFIG), ("arpg", ARPG_CONFIG)])
def test_sizes_of_ones_own_need_their_heads_and_their_grid(family: str, config: LlamaGenConfig) -> None:
    checkpoint = checkpoint_of(family, config)
    message = f"has {config.n_layer} layers of width {config.dim}, which is no published size.*--n-head.*--config"
    with pytest.raises(CheckpointError, match=message):
        told(checkpoint, grid=config.grid)
    with pytest.raises(CheckpointError, match="give it by --grid"):
        told(checkpoint, n_head=config.n_head)
    found, dimensions, said = told(checkpoint, grid=config.grid, n_head=config.n_head)
    assert found == family
    assert replace(dimensions, multiple_of=config.multiple_of) == config
    assert FAMILIES[family].checkpoint_shapes(dimensions) == checkpoint.shapes
    assert "of a size of its own" in said
    assert "norm_eps 1e-05, rope_base 10000 as published (--config sets others)" in said
    with pytest.raises(CheckpointError, match="n_head 7 does not divide dim"):
        told(checkpoint, grid=config.grid, n_head=7)


def test_grouped_heads_and_odd_feed_forward_widths_are_read_off() -> None:
    checkpoint = checkpoint_of("llamagen", GROUPED_CONFIG)
    _, dimensions, _ = told(checkpoint, grid=GROUPED_CONFIG.grid, n_head=4)
    assert dimensions.kv_heads == 2
    assert FAMILIES["llamagen"].checkpoint_shapes(dimensions) == checkpoint.shapes
    for multiplier, multiple in ((0.5, 1), (1.3, 1), (None, 20), (0.37, 3)):
        config = replace(CONFIG, ffn_dim_multiplier=multiplier, multiple_of=multiple)
        _, dimensions, _ = told(checkpoint_of("llamagen", config), grid=(8, 8), n_head=4)
        assert dimensions.hidden == config.hidden  # type: ignore[attr-defined]


def test_a_configuration_says_all_but_the_family(tmp_path: Path) -> None:
    facts = {
        "dim": 64,
        "n_layer": 4,
        "n_head": 4,
        "grid": [4, 6],
        "vocab_size": 32,
        "num_classes": 10,
        "multiple_of": 32,
    }
    (tmp_path / "x.json").write_text(json.dumps(facts))
    found, dimensions, said = told(checkpoint_of("arpg", ARPG_CONFIG), config=tmp_path / "x.json")
    assert (found, dimensions, said) == ("arpg", ARPG_CONFIG, "")


def without(checkpoint: Checkpoint, *parts: str) -> Checkpoint:
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not any(part in name for part in parts)}
    return replace(checkpoint, tensors=kept)


def test_what_is_of_no_family_or_not_whole_is_said() -> None:
    whole = checkpoint_of("llamagen", CONFIG)
    assert (kind_of(whole), family_of(whole).name) == ("llamagen", "llamagen")
    with pytest.raises(CheckpointError, match=r"of no family .*: the families are llamagen, llamagen-t2i, par"):
        told(without(whole, "cls_embedding"))
    with pytest.raises(CheckpointError, match="is not a whole llamagen checkpoint.*tok_embeddings"):
        told(without(whole, "tok_embeddings"))
    with pytest.raises(CheckpointError, match=r"missing output.weight\. It is of that family, but not whole"):
        told(without(whole, "output"), grid=(8, 8), n_head=4)
    text = {"cls_embedding.cap_proj.fc1.weight": whole.tensors["output.weight"]}
    with pytest.raises(CheckpointError, match=r"has no cls_embedding.uncond_embedding, the rows that stand for no cap"):
        told(replace(whole, tensors=text))
    image = {"quantize.embedding.weight": whole.tensors["output.weight"]}
    with pytest.raises(CheckpointError, match="looks like a VQ tokenizer checkpoint: the families are"):
        told(replace(whole, tensors=image))


def test_a_family_that_the_tensors_do_not_show_is_refused() -> None:
    checkpoint = checkpoint_of("par", PAR_CONFIG)
    with pytest.raises(CheckpointError, match="unexpected spe_tok_embeddings.*It looks like a par checkpoint"):
        told(checkpoint, family="llamagen", grid=(8, 8), n_head=2)
    with pytest.raises(CheckpointError, match="is not a whole arpg checkpoint.*It looks like a par checkpoint"):
        told(checkpoint, family="arpg", grid=(8, 8), n_head=2)


@pytest.mark.parametrize(
    ("family", "variant", "options", "guidance"),
    [
        ("llamagen", "L", {}, 2.0),
        ("par", "XL", {}, 1.5),
        ("par", "XXL", {}, 1.435),
        ("par", "3B", {}, 1.345),
        ("par", "3B", {"regions": 16}, 1.5),
        ("arpg", "L", {}, 4.5),
        ("arpg", "XL", {}, 6.0),
        ("arpg", "XXL", {}, 7.5),
    ],
)
def test_sampler_defaults_are_each_authors(family: str, variant: str, options: dict[str, int], guidance: float) -> None:
    known = FAMILIES[family]
    sampler = known.sampler(variant_config(known, variant, (24, 24), **options))
    assert (sampler.guidance, sampler.temperature, sampler.top_k, sampler.top_p) == (guidance, 1.0, 0, 1.0)
    assert (sampler.kind, FAMILIES["arpg"].sampler(ARPG_CONFIG).guidance) == ("uniform", 4.0)
