"""Emu3-Gen: its published layout, what its folder tells, and its bundles against a plain reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import llama_oracle as oracle
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from llama_oracle import Images, Llama
from tiny_llama import EMU3, llama_weights, save_folder, save_tokenizer
from torch import Tensor

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.export.checkpoint import open_checkpoint
from arforge.export.config import variant_config
from arforge.export.dimensions import Named, model_of
from arforge.export.families.emu3 import FAMILY, FLAWS, Emu3Config, template
from arforge.export.families.llama import checkpoint_shapes
from arforge.export.model_folder import Words, read_words
from arforge.export.recognition import part_of
from arforge.export.verify import check_weights, compare_condition, compare_logits
from arforge.runner import Runner, open_bundle
from arforge.runner.bundle import IdsCondition
from arforge.runner.errors import CheckpointError, RequestError
from arforge.runner.schedules.specification import compile_schedule

GRID = (3, 5)
PROMPTS = [[300, *ids, 302, 18, 9, 20, 301] for ids in ([5, 80, 33], [250, 7, 7, 91, 0, 12], [99])]
NEGATIVE = [300, 1, 2, 3, 4, 302, 18, 9, 20, 301]
GUIDANCE = 3.0
SPECIAL = {"<|extra_203|>": 300, "<|image token|>": 301, "<|image start|>": 302, "<|extra_200|>": 303}


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *(str(word) for word in words)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return llama_weights(EMU3, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    return save_folder(tmp_path_factory.mktemp("emu3"), weights, EMU3)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    output = folder.parent / "emu3.bundle"
    code, said = export("emu3", "--checkpoint", folder, "--grid", "3x5", "--output", output)
    assert code == 0, said
    onnxruntime.build(output)
    return output


def test_the_published_size_has_the_published_tensors() -> None:
    config = variant_config(FAMILY, "8B", (90, 90))
    shapes = checkpoint_shapes(config)
    assert len(shapes) == 291
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(8.492e9, rel=1e-4)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (1024, 4096)
    assert shapes["layers.0.mlp.down_proj.weight"] == (4096, 14336)
    assert (config.rope_base, config.slots) == (1e6, 1024)
    assert config.first_image + config.vocab_size == config.words == 184622


def test_defaults_are_the_authors() -> None:
    config = variant_config(FAMILY, "8B", (68, 120))
    usual = FAMILY.sampler(config)
    assert (usual.guidance, usual.temperature, usual.top_k, usual.top_p) == (3.0, 1.0, 2048, 1.0)
    condition = template(config, Words())
    assert (condition.prefix, condition.after) == ((151849,), " masterpiece, film grained, best quality.")
    assert condition.suffix == (151852, 21, 23, 9, 16, 17, 15, 151851)  # 68*120, a character a word
    assert (condition.start, condition.unconditional, condition.negative) == (1, "negative", ())
    assert condition.reserved == ((151846, 184621),)
    assert FAMILY.schedules(variant_config(FAMILY, "8B", (90, 90))) == ["ntp", "zipar:8"]
    assert len(compile_schedule("zipar:8", (90, 90), row_end=0).steps) == 713


def test_the_folder_tells_the_words_and_the_area(folder: Path) -> None:
    family, config = model_of(open_checkpoint(folder), Named())
    assert isinstance(config, Emu3Config)
    assert (family.name, config.grid) == ("emu3", (6, 6))
    assert (config.first_image, config.vocab_size, config.row_end) == (310, 50, 303)
    assert (config.kv_heads, config.hidden, config.slots) == (2, 48, 200 - 6 * 7)


def test_transformers_layout_is_read_too(tmp_path: Path, folder: Path, weights: dict[str, Tensor]) -> None:
    text = {name: EMU3[name] for name in EMU3 if name not in ("model_type", "image_area")}
    names = {"<|visual token 000000|>": 310, "<|extra_200|>": 303, "<|image token|>": 301, "<|image start|>": 302}
    ported = {"model_type": "emu3", "text_config": text, "vocabulary_map": {**names, "<|extra_203|>": 300}}
    head = {"text_model.lm_head.weight": weights["lm_head.weight"], "vqmodel.quantize.embedding.weight": torch.ones(3)}
    decoder = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    stored = open_checkpoint(save_folder(tmp_path / "x", {**decoder, **head}, ported, "text_model.model."))
    family, config = model_of(stored, Named(grid=(6, 6)))
    assert config == model_of(open_checkpoint(folder), Named())[1]
    assert set(part_of(stored, family).tensors) == set(weights)


def test_prompts_with_a_negative_one_of_another_length_give_the_references_tokens(
    bundle: Path, weights: dict[str, Tensor]
) -> None:
    table, head = weights["embed_tokens.weight"], weights["lm_head.weight"]
    model = Llama(weights, heads=4, base=1e6)
    drawn = Images(GRID, lambda token: table[310 + token], lambda x: x @ head[310:].T, table[303])
    with Runner.open(bundle, threads=1) as runner:
        ids = [np.array(one) for one in PROMPTS]
        with pytest.raises(RequestError, match="unconditional rows see a negative prompt, and the bundle has none"):
            runner.generate(ids=ids, greedy=True)
        asked = {"ids": ids, "negative_ids": np.array(NEGATIVE), "greedy": True}
        found = runner.generate(schedule="ntp", **asked).tokens  # type: ignore[arg-type]
        parallel = runner.generate(schedule="zipar:2", **asked).tokens  # type: ignore[arg-type]
    for row, prompt in enumerate(PROMPTS):
        assert found[row].tolist() == oracle.next_token(model, drawn, prompt, NEGATIVE, GUIDANCE)
        assert parallel[row].tolist() == oracle.zipar(model, drawn, prompt, NEGATIVE, GUIDANCE, delay=1)
    assert len(np.unique(found)) > 12


def test_the_bundle_is_its_modules(bundle: Path, folder: Path) -> None:
    opened = open_bundle(bundle)
    model = opened.model
    assert (model.vocabulary, model.specials, model.row_end) == (50, (50,), 0)
    assert (model.kv_heads, model.head_size, model.dim) == (2, 16, 40)
    assert opened.text_tokenizer is None
    assert check_weights(opened, folder) == 2 * 7 + 3 + 1
    assert compare_condition(opened) == 0
    assert compare_logits(opened, "zipar:2", max_steps=6).largest_error < 1e-4


def test_a_tokenizer_tells_the_negative_prompt(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, SPECIAL)
    words = read_words(tmp_path, 360)
    config = model_of(open_checkpoint(folder), Named(grid=(10, 12)))[1]
    condition = template(config, words)
    assert isinstance(condition, IdsCondition)
    size = words.encode("10*12")
    assert len(size) == 5
    assert condition.suffix == (302, *size, 301)
    assert condition.negative == (300, *words.encode(FLAWS), *condition.suffix)
    assert condition.reserved == ((300, 359),)
    with pytest.raises(CheckpointError, match="has ids up to 303, the model a vocabulary of 200"):
        read_words(tmp_path, 200)


def test_what_does_not_fit_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "model"
    own.mkdir()
    (own / "model.safetensors").symlink_to(folder / "model.safetensors")
    for change, grid, message in (
        ({"eoi_token_id": 400}, "3x5", "vocab_size must be a positive whole number, not -41"),
        ({"eol_token_id": 400}, "3x5", "the token 400, which ends a row, is beyond the vocabulary of 360"),
        ({"intermediate_size": 64}, "3x5", "has other dimensions than its config.json says: layers.0.mlp.gate_proj"),
        ({}, "20x20", "grid 20x20: its 420 tokens leave a prompt none of the 200 positions"),
    ):
        (own / "config.json").write_text(json.dumps({**EMU3, **change}))
        code, said = export("emu3", "--checkpoint", own, "--grid", grid, "--output", tmp_path / "x.bundle")
        assert code == 1
        assert message in " ".join(said.split()), said
    assert not (tmp_path / "x.bundle").exists()
