"""LlamaGen for captions: its published sizes, what its checkpoints tell, and what is refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner
from oracle import TextDecoder
from safetensors.torch import save_file
from tiny import TEXT_CONFIG, random_weights
from torch import Tensor

from arforge.cli import main
from arforge.export.config import variant_config
from arforge.export.families.llamagen import LlamaGen
from arforge.export.families.llamagen_t2i import FAMILY, CaptionGraph, checkpoint_shapes
from arforge.export.verify import compare_condition
from arforge.runner import open_bundle
from arforge.runner.bundle import FeaturesCondition


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *(str(word) for word in words)])
    return result.exit_code, result.output


def test_the_published_size_has_the_published_tensors() -> None:
    shapes = checkpoint_shapes(variant_config(FAMILY, "XL", (32, 32)))
    assert len(shapes) == 258
    assert sum(math.prod(shape) for shape in shapes.values()) == 777_923_840
    assert shapes["cls_embedding.cap_proj.fc1.weight"] == (1280, 2048)
    assert shapes["cls_embedding.cap_proj.fc2.weight"] == (1280, 1280)
    assert shapes["cls_embedding.uncond_embedding"] == (120, 2048)
    assert shapes["tok_embeddings.weight"] == (16384, 1280)
    assert not any("embedding_table" in name for name in shapes)


def test_the_authors_sampling_is_the_default() -> None:
    usual = FAMILY.sampler(TEXT_CONFIG)
    assert (usual.guidance, usual.temperature, usual.top_k, usual.top_p) == (7.5, 1.0, 1000, 1.0)
    assert FAMILY.condition(TEXT_CONFIG) == FeaturesCondition(120, 48, captions="clean")


@torch.no_grad()
def test_the_module_equals_the_plain_reference(text_weights: dict[str, Tensor]) -> None:
    """Whole prompts and images at once, padded on the left, as in training."""
    plain = TextDecoder(text_weights, TEXT_CONFIG.n_head, TEXT_CONFIG.grid)
    random = np.random.default_rng(0)
    captions = [random.standard_normal((length, 48), np.float32) for length in (3, 8)]
    tokens = random.integers(0, TEXT_CONFIG.vocab_size, (2, TEXT_CONFIG.cells))
    expected = oracle.teacher_forced(plain, captions, tokens, guidance=1.0)
    parts = CaptionGraph(TEXT_CONFIG), LlamaGen(TEXT_CONFIG)
    for part in parts:
        part.eval().load_state_dict({name: text_weights[name] for name in part.state_dict()})
    rows, longest = torch.zeros(2, 8, 64), 8
    for row, caption in enumerate(captions):
        rows[row, longest - len(caption) :] = parts[0](torch.from_numpy(caption)[None])[0][0]
    fed = torch.cat([TEXT_CONFIG.vocab_size + torch.arange(8).expand(2, -1), torch.from_numpy(tokens[:, :-1])], dim=1)
    positions = torch.cat([torch.zeros(8, dtype=torch.int64), 1 + torch.arange(TEXT_CONFIG.cells - 1)]).expand_as(fed)
    mask = torch.ones(fed.shape[1], fed.shape[1], dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[0, :, :, :5] = torch.eye(fed.shape[1], dtype=torch.bool)[:, :5]  # padding sees itself, nobody else does
    logits, _ = parts[1](fed, positions, mask, condition=rows)
    np.testing.assert_allclose(logits[:, 7:].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_alone_tells_what_it_is(text_weights: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    checkpoint = tmp_path / f"t2i_stage1_256.{suffix}"
    if suffix == "pt":
        torch.save({"model": text_weights}, checkpoint)
    else:
        save_file(text_weights, checkpoint)
    code, output = export(checkpoint, "--n-head", 4, "--output", tmp_path / "a.bundle", "--captions", "raw")
    assert code == 0, output
    model = open_bundle(tmp_path / "a.bundle").model
    assert (model.family, model.grid, model.dim, model.vocabulary) == ("llamagen-t2i", (16, 16), 64, 32)
    assert model.condition == FeaturesCondition(120, 48, captions="raw")
    assert model.parameters == sum(tensor.numel() for tensor in text_weights.values())


def test_a_file_without_the_rows_of_no_caption_is_refused(text_weights: dict[str, Tensor], tmp_path: Path) -> None:
    checkpoint = tmp_path / "t2i.pt"
    torch.save({"model": {name: value for name, value in text_weights.items() if "uncond" not in name}}, checkpoint)
    code, output = export(checkpoint, "--n-head", 4, "--grid", "8x8")
    assert code == 1
    assert "has no cls_embedding.uncond_embedding, the rows that stand for no caption" in output
    config = tmp_path / "t2i.json"
    config.write_text(
        '{"dim": 64, "n_layer": 2, "n_head": 4, "vocab_size": 32, "caption_dim": 48, "grid": [8, 8], "multiple_of": 32}'
    )
    code, output = export("llamagen-t2i", "--config", config, "--checkpoint", checkpoint)
    assert code == 1
    assert "missing cls_embedding.uncond_embedding" in output


def test_other_kinds_of_checkpoint_are_named(text_weights: dict[str, Tensor], tmp_path: Path) -> None:
    checkpoint = tmp_path / "t2i.pt"
    torch.save({"model": text_weights}, checkpoint)
    code, output = export("llamagen", "--variant", "B", "--grid", "16x16", "--checkpoint", checkpoint)
    assert code == 1
    assert "It looks like a llamagen-t2i checkpoint" in output
    code, output = export(
        "llamagen-t2i", "--n-head", 4, "--grid", "8x8", "--checkpoint", checkpoint, "--labels", __file__
    )
    assert code == 1
    assert "names of classes are given, and the model has none" in output or "must hold a name" in output


def test_models_of_classes_have_no_captions(checkpoint: Path) -> None:
    code, output = export(checkpoint, "--n-head", 4, "--grid", "8x8", "--captions", "raw")
    assert code == 1
    assert "--captions goes with models that take prompts" in output


def test_tensors_tell_the_configuration() -> None:
    weights = random_weights(TEXT_CONFIG, seed=1, family=FAMILY)
    told = FAMILY.infer({name: tuple(value.shape) for name, value in weights.items()}, lambda layers, dim: 4)
    found = FAMILY.config(**told, grid=(8, 8))
    assert (found.hidden, found.caption_dim, found.caption_slots) == (TEXT_CONFIG.hidden, 48, 120)
    assert checkpoint_shapes(found) == checkpoint_shapes(TEXT_CONFIG)
    assert "num_classes" not in asdict(TEXT_CONFIG)


def test_prompts_get_fewer_slots_where_that_is_asked_for(text_weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": text_weights}, tmp_path / "t2i.pt")
    given = [tmp_path / "t2i.pt", "--n-head", 4, "--grid", "8x8", "--output", tmp_path / "a.bundle", "--prompt-slots"]
    code, output = export(*given, 121)
    assert code == 1
    assert "prompt_slots 121 is more than the 120 rows that stand for no caption" in output
    code, output = export(*given, 30)
    assert code == 0, output
    opened = open_bundle(tmp_path / "a.bundle")
    assert opened.model.condition == FeaturesCondition(30, 48, captions="clean")
    assert compare_condition(opened) < 1e-5  # type: ignore[operator]
