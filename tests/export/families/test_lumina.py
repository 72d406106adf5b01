"""Lumina-mGPT: its published layout, what its folder tells, its module and its bundles against a plain reference."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import llama_oracle as oracle
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from llama_oracle import Images, Lane, Llama
from tiny_llama import LUMINA, llama_weights, save_folder
from torch import Tensor

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.export.checkpoint import open_checkpoint
from arforge.export.config import variant_config
from arforge.export.dimensions import Named, model_of
from arforge.export.families.lumina import FAMILY, Lumina, LuminaConfig, checkpoint_shapes, parameter, template
from arforge.export.model_folder import Words
from arforge.export.recognition import part_of
from arforge.export.rows import rows_of
from arforge.export.verify import check_weights, compare_condition, compare_logits
from arforge.runner import Runner, open_bundle
from arforge.runner.schedules.specification import compile_schedule

PROMPTS = [[0, *ids, 8710] for ids in ([8900, 8950, 8820], [8999, 8890, 8900, 8901, 8902, 8888], [8950])]
BEGIN = [8197, 8804 + 2, 8804 + 3]  # 4x6 tokens
GUIDANCE = 3.0


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *(str(word) for word in words)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return llama_weights(LUMINA, seed=1, norm_groups=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    return save_folder(tmp_path_factory.mktemp("lumina"), weights, LUMINA)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    output = folder.parent / "lumina.bundle"
    code, said = export(folder, "--grid", "4x6", "--output", output, "--schedule", "ntp", "--schedule", "zipar:3")
    assert code == 0, said
    assert "lumina (2 layers of 4 heads, width 32, 8192 image tokens), as its config.json says" in said
    onnxruntime.build(output)
    return output


def images(weights: dict[str, Tensor], grid: tuple[int, int]) -> Images:
    table, head = weights["embed_tokens.weight"], weights["lm_head.weight"]
    return Images(grid, lambda token: table[4 + token], lambda x: x @ head[4:8196].T, table[8803])


def test_the_published_size_has_the_published_tensors() -> None:
    config = variant_config(FAMILY, "7B", (48, 48))
    shapes = checkpoint_shapes(config)
    assert len(shapes) == 419
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(7.013e9, rel=1e-4)
    assert shapes["embed_tokens.weight"] == shapes["lm_head.weight"] == (65536, 4096)
    assert shapes["layers.31.mlp.gate_proj.weight"] == (11008, 4096)
    assert shapes["layers.0.self_attn.q_norm.bias"] == shapes["layers.0.self_attn.k_norm.weight"] == (1, 128)
    assert (config.slots, config.position_rows) == (1024, 1024 + 48 * 49)


def test_defaults_are_the_authors() -> None:
    config = variant_config(FAMILY, "7B", (48, 48))
    usual = FAMILY.sampler(config)
    assert (usual.guidance, usual.temperature, usual.top_k, usual.top_p) == (4.0, 1.0, 2000, 1.0)
    assert FAMILY.schedules(config) == ["ntp", "zipar:16"]
    assert len(compile_schedule("zipar:16", (48, 48), row_end=0).steps) == 753
    condition = template(config, Words())
    assert condition.before == "Generate an image of 768x768 according to the following prompt:\n"
    assert (condition.prefix, condition.suffix, condition.start) == ((0,), (8710, 8197, 8828, 8828), 3)
    assert (condition.padding, condition.unconditional, condition.reserved) == (1, "image", ((0, 16383),))
    wide = template(variant_config(FAMILY, "7B", (32, 64)), Words())
    assert wide.before.startswith("Generate an image of 1024x512 ")
    assert wide.suffix[-2:] == (8804 + 16, 8804 + 32)


@pytest.mark.parametrize(("swin", "groups", "kv_heads"), [(False, 1, 4), (True, 2, 2), (False, 4, 2)])
@torch.no_grad()
def test_the_module_equals_the_plain_reference(tmp_path: Path, swin: bool, groups: int, kv_heads: int) -> None:
    """Of one group, of several that share heads, and of transformers' layout with a norm a head."""
    values = {**LUMINA, "swin_norm": swin, "num_key_value_heads": kv_heads}
    weights = llama_weights(values, seed=2, norm_groups=groups)
    if groups > kv_heads:
        weights = {name: value[:kv_heads] if ".k_norm." in name else value for name, value in weights.items()}
    save_folder(tmp_path, weights, values)
    checkpoint = open_checkpoint(tmp_path)
    family, config = model_of(checkpoint, Named(grid=(4, 4)))
    assert (family.name, config.swin_norm, config.kv_heads) == ("lumina", swin, kv_heads)
    taken = part_of(checkpoint, family)
    module = Lumina(config).eval()
    module.load_state_dict({name: rows_of(parameter(config, taken, name)).tensor() for name in module.state_dict()})
    lane = Lane(Llama(weights, heads=4, swin=swin))
    table = weights["embed_tokens.weight"]
    read = lane.step(table[[0, 8710, 8197, *range(4, 9), 8803]], range(9))
    expected = read @ weights["lm_head.weight"][4:8196].T
    tokens = torch.tensor([[8193, 8194, 8195, 0, 1, 2, 3, 4, 8192]])
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    found, _ = module(tokens, torch.arange(9)[None], mask, condition=table[[0, 8710, 8197]][None])
    torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=2e-4)


def test_three_prompts_of_unequal_lengths_give_the_references_tokens(bundle: Path, weights: dict[str, Tensor]) -> None:
    model, drawn = Llama(weights, heads=4), images(weights, (4, 6))
    with Runner.open(bundle, threads=1) as runner:
        asked: dict[str, Any] = {"guidance": GUIDANCE, "greedy": True, "ids": [np.array(one) for one in PROMPTS]}
        found = runner.generate(schedule="ntp", **asked).tokens
        published = {"unconditional": "padded", "prefill": "bidirectional"}
        parallel = runner.generate(schedule="zipar:3", **published, **asked).tokens
    for row, prompt in enumerate(PROMPTS):
        whole, padded = [*prompt, *BEGIN], [0, *[1] * (len(prompt) - 1), *BEGIN]
        assert found[row].tolist() == oracle.next_token(model, drawn, whole, BEGIN, GUIDANCE)
        assert parallel[row].tolist() == oracle.zipar(model, drawn, whole, padded, GUIDANCE, delay=2, start=3)
    assert len(np.unique(found)) > 20


def test_the_bundle_is_its_modules(bundle: Path, folder: Path, weights: dict[str, Tensor]) -> None:
    opened = open_bundle(bundle)
    model = opened.model
    assert (model.family, model.positions, model.row_end, model.specials) == ("lumina", "sequence", 0, (8192,))
    assert (model.vocabulary, model.ids, model.position_rows) == (8192, 8193, 1024 + 4 * 7)
    assert model.parameters == sum(value.numel() for value in weights.values())
    assert check_weights(opened, folder) == 2 * 11 + 3 + 1
    assert compare_condition(opened) == 0
    for schedule in ("ntp", "zipar:3"):
        assert compare_logits(opened, schedule, max_steps=8).largest_error < 1e-4


@pytest.mark.parametrize(
    ("change", "grid", "message"),
    [
        ({"hidden_size": 64}, "4x4", r"embed_tokens.weight is \[9000, 32\], expected \[9000, 64\]"),
        ({"num_hidden_layers": 3}, "4x4", "missing layers.2.*check the dimensions"),
        ({"num_key_value_heads": 4}, "4x4", "has other dimensions than its config.json says: layers.0.self_attn.k_"),
        ({"hidden_size": 40}, "4x4", "head size 10 .* must be a multiple of 8: its queries and keys are normed"),
        ({"num_attention_heads": 5}, "4x4", "n_head 5 does not divide dim 32"),
        ({"num_attention_heads": "4"}, "4x4", "num_attention_heads must be a positive whole number, not '4'"),
        ({"model_type": "llama"}, "4x4", "is of the model type 'llama', expected chameleon"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "4x4", "rope_scaling is .*: arforge exports models with"),
        ({"attention_bias": True}, "4x4", "attention_bias is True"),
        ({"vocab_size": 8000}, "4x4", r"image tokens 4 to 8195 are beyond the vocabulary of 8000"),
        ({}, "4x5", "grid 4x5: both sides must be even"),
        ({}, "4x20", "grid 4x20: no side may be more than 4 times the other"),
        ({}, "66x64", "grid 66x64 has more than the 4096 tokens of the largest images"),
        ({}, None, "tell the grid of tokens.*--grid .*48x48 for 768 pixels"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    tmp_path: Path, folder: Path, change: dict[str, Any], grid: str | None, message: str
) -> None:
    own = tmp_path / "model"
    own.mkdir()
    (own / "model.safetensors").symlink_to(folder / "model.safetensors")
    (own / "config.json").write_text(json.dumps({**LUMINA, **change}))
    output = tmp_path / "x.bundle"
    code, said = export("lumina", "--checkpoint", own, *(["--grid", grid] if grid else []), "--output", output)
    assert code == 1
    assert re.search(message, " ".join(said.split())), said
    assert not output.exists()


def test_prompts_get_the_slots_that_are_asked_for(tmp_path: Path, folder: Path) -> None:
    config = model_of(open_checkpoint(folder), Named(grid=(4, 4), options={"prompt_slots": 40}))[1]
    assert isinstance(config, LuminaConfig)
    assert (config.slots, config.position_rows) == (40, 40 + 4 * 5)
    code, said = export(folder, "--grid", "4x4", "--prompt-slots", 5000, "--output", tmp_path / "x.bundle")
    assert code == 1
    assert "prompt_slots 5000 are more than the 4076 positions" in said
    code, said = export(folder, "--grid", "4x4", "--prompt-slots", 3, "--output", tmp_path / "x.bundle")
    assert code == 1
    assert "prompts of 3 ids have no room for their own template" in said


def test_a_name_tells_the_grid(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "Lumina-mGPT-7B-768").symlink_to(folder)
    lines: list[str] = []
    config = model_of(open_checkpoint(tmp_path / "Lumina-mGPT-7B-768"), Named(), lines.append)[1]
    assert config.grid == (48, 48)
    assert "a grid of 48x48, since the name says 768 pixels" in lines[0]


def test_dimensions_may_come_from_a_file_of_ones_own(folder: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"dim": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "grid": [4, 4], "words": 9000}
    own |= {"norm_groups": 2, "multiple_of": 48, "ffn_dim_multiplier": 0.5}
    (tmp_path / "own.json").write_text(json.dumps(own))
    config = model_of(open_checkpoint(folder), Named(family="lumina", config=tmp_path / "own.json"))[1]
    assert config.hidden == 48
    (tmp_path / "own.json").write_text(json.dumps({**own, "swin_norm": "no"}))
    code, said = export("lumina", "--checkpoint", folder, "--config", tmp_path / "own.json")
    assert code == 1
    assert "swin_norm must be true or false, not 'no'" in said
