"""Janus and Janus-Pro: their published layouts, what their folders tell, and bundles against a plain reference."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import llama_oracle as oracle
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from llama_oracle import Images, Llama
from safetensors.torch import save_file
from tiny_llama import JANUS, JANUS_WORDS, LLAMA, janus_weights, save_janus, save_tokenizer
from tokenizers import pre_tokenizers
from torch import Tensor

from arforge.cli import main
from arforge.engines import onnxruntime
from arforge.engines.low_precision import add_graphs
from arforge.export.checkpoint import open_checkpoint
from arforge.export.config import variant_config
from arforge.export.dimensions import Named, model_of
from arforge.export.families.janus import ALIGNER, FAMILY, PORTED, checkpoint_shapes, template
from arforge.export.model_folder import Words
from arforge.export.recognition import family_of, part_of
from arforge.export.verify import check_weights, compare_condition, compare_logits
from arforge.runner import Runner, open_bundle

GRID = (4, 4)
GUIDANCE = 5.0
FIRST, PADDING, BEGIN, USER, ASSISTANT = range(270, 275)
SPECIAL = dict(zip(JANUS_WORDS, range(270, 275), strict=True))
PROMPTS = [[FIRST, *ids, BEGIN] for ids in ([8, 100, 31, 2], [250], [9, 9, 9, 12, 90, 7, 180])]


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *(str(word) for word in words)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return janus_weights(seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    made = save_janus(tmp_path_factory.mktemp("janus"), weights)
    save_tokenizer(made, SPECIAL)
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    output = folder.parent / "janus.bundle"
    code, said = export(folder, "--grid", "4x4", "--output", output)
    assert code == 0, said
    assert "left out what janus models draw no images with: language_model.lm_head.weight, vision_model.norm" in said
    onnxruntime.build(output)
    return output


def text_ids(text: str) -> list[int]:
    """A byte is a token, in the order in which a byte-level alphabet sorts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("Ġ" if one == " " else "Ċ" if one == "\n" else one) for one in text]


def aligned(weights: dict[str, Tensor], token: int) -> Tensor:
    x = weights["gen_embed.weight"][token]
    for index, name in enumerate(ALIGNER):
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = x if index else gelu(x)
    return x


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def head(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden, codes = ("gen_head.output_mlp_projector", "gen_head.vision_head")
    x = gelu(x @ weights[f"{hidden}.weight"].T + weights[f"{hidden}.bias"])
    return x @ weights[f"{codes}.weight"].T + weights[f"{codes}.bias"]


@pytest.mark.parametrize(("variant", "decoder"), [("1B", 1.23e9), ("7B", 6.07e9)])
def test_the_published_sizes_have_the_published_tensors(variant: str, decoder: float) -> None:
    config = variant_config(FAMILY, variant, (24, 24))
    shapes = checkpoint_shapes(config)
    layers = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("layers."))
    assert layers == pytest.approx(decoder, rel=0.01)
    assert shapes["gen_embed.weight"] == (16384, 8)
    assert shapes["gen_aligner.layers.0.weight"] == (config.dim, 8)
    assert shapes["gen_head.vision_head.bias"] == (16384,)
    assert (config.norm_eps, config.hidden) == (1e-6, {"1B": 5632, "7B": 11008}[variant])
    assert "lm_head.weight" not in shapes


def test_defaults_are_the_authors() -> None:
    config = variant_config(FAMILY, "7B", (24, 24))
    usual = FAMILY.sampler(config)
    assert (usual.guidance, usual.temperature, usual.top_k, usual.top_p) == (5.0, 1.0, 0, 1.0)
    assert FAMILY.schedules(config) == ["ntp", "zipar:8"]
    condition = template(config, Words())
    assert (condition.prefix, condition.before, condition.after) == ((100000,), "User: ", "\n\nAssistant:")
    assert (condition.suffix, condition.start, condition.padding) == ((100016,), 1, 100015)
    assert (condition.unconditional, condition.stripped) == ("padded", True)


def test_a_partial_configuration_is_the_7b(tmp_path: Path) -> None:
    """As that of Janus-Pro-7B, which leaves the sizes to a library's defaults."""
    config = {**JANUS, "language_config": {"num_hidden_layers": 30, "vocab_size": 102400}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"gen_embed.weight": torch.zeros(2, 8)}, tmp_path / "model.safetensors")
    code, said = export("janus", "--checkpoint", tmp_path)
    assert code == 1
    assert "is not a whole janus checkpoint (missing or of another shape: 'gen_head.output_mlp_projector" in said
    taken = {**JANUS["gen_head_config"]["params"], "image_token_embed": 4096, "image_token_size": 16384}
    (tmp_path / "config.json").write_text(json.dumps({**config, "gen_head_config": {"params": taken}}))
    shapes = checkpoint_shapes(variant_config(FAMILY, "7B", (24, 24)))
    save_file({name: torch.zeros(shape) for name, shape in shapes.items() if name.startswith("gen_head.output")}
              | {"gen_embed.weight": torch.zeros(16384, 8)}, tmp_path / "model.safetensors")  # fmt: skip
    code, said = export("janus", "--checkpoint", tmp_path)
    assert code == 1
    assert "missing embed_tokens.weight" in said
    assert "layers.0.self_attn.q_proj.weight" in said


def test_the_folder_tells_the_template(bundle: Path) -> None:
    opened = open_bundle(bundle)
    condition = opened.model.condition
    assert condition.kind == "ids"
    assert opened.text_tokenizer is not None
    words = condition.suffix[1:-1]
    assert condition.prefix == (FIRST, USER)
    assert (condition.before, condition.after, condition.suffix) == (": ", "\n\n", (ASSISTANT, *words, BEGIN))
    assert len(words) == 1  # the colon
    assert (condition.padding, condition.reserved) == (PADDING, ((270, 274),))
    assert condition.slots == 200 - 16


def test_prompts_give_the_references_tokens(bundle: Path, weights: dict[str, Tensor]) -> None:
    model = Llama(weights, heads=4, eps=1e-6)
    drawn = Images(GRID, lambda token: aligned(weights, token), lambda x: head(weights, x))
    with Runner.open(bundle, threads=1) as runner:
        found = runner.generate(ids=[np.array(one) for one in PROMPTS], schedule="ntp", greedy=True).tokens
        said = runner.generate(prompts=["  a cat\n"], schedule="ntp", greedy=True).tokens
        special = runner.generate(prompts=["a <begin_of_image> cat"], schedule="ntp", greedy=True).tokens
    for row, prompt in enumerate(PROMPTS):
        padded = [FIRST, *[PADDING] * (len(prompt) - 2), BEGIN]
        assert found[row].tolist() == oracle.next_token(model, drawn, prompt, padded, GUIDANCE)
    assert len(np.unique(found)) > 10
    for text, tokens in (("a cat", said), ("a <begin_of_image> cat", special)):  # which is words, not the special one
        prompt = [FIRST, USER, *text_ids(f": {text}\n\n"), ASSISTANT, *text_ids(":"), BEGIN]
        padded = [FIRST, *[PADDING] * (len(prompt) - 2), BEGIN]
        assert tokens[0].tolist() == oracle.next_token(model, drawn, prompt, padded, GUIDANCE)


def test_the_bundle_is_its_modules(bundle: Path, folder: Path) -> None:
    opened = open_bundle(bundle)
    assert (opened.model.vocabulary, opened.model.specials, opened.model.row_end) == (24, (), None)
    assert check_weights(opened, folder) == 2 * 7 + 2 + 4 + 1
    assert compare_condition(opened) == 0
    for schedule in ("ntp", "zipar:1"):
        assert compare_logits(opened, schedule, max_steps=8).largest_error < 1e-4


def test_transformers_layout_is_read_too(tmp_path: Path, folder: Path, weights: dict[str, Tensor]) -> None:
    ported = {own: name for name, own in PORTED.items()}
    theirs = {}
    for name, value in weights.items():
        part = next((own for own in ported if name.startswith(f"{own}.")), None)
        if part is not None:
            theirs[f"model.{ported[part]}{name.removeprefix(part)}"] = value
        elif name != "lm_head.weight":
            theirs[f"model.language_model.{name}"] = value
    save_file({**theirs, "model.vqmodel.quantize.embedding.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    config = {
        "model_type": "janus",
        "text_config": {**LLAMA, "vocab_size": 300, "rms_norm_eps": 1e-6, "max_position_embeddings": 200},
        "vq_config": {"num_embeddings": 24, "embed_dim": 6, "image_token_embed_dim": 40},
        "vision_config": {"image_size": 96, "patch_size": 16},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert family_of(checkpoint).name == "janus"
    family, found = model_of(checkpoint, Named())
    assert found == model_of(open_checkpoint(folder), Named(grid=(6, 6)))[1]
    assert set(part_of(checkpoint, family).tensors) == set(checkpoint_shapes(found))


def test_a_configuration_that_disagrees_is_one_clear_error(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    codes = {"params": {"image_token_size": 25, "n_embed": 6}}
    deep = {"params": {"depth": 3, "projector_type": "mlp_gelu"}}
    for change, message in (
        ({"gen_vision_config": codes}, "gen_embed.weight is [24, 6], expected [25, 6]"),
        ({"gen_aligner_config": deep}, "depth is 3: arforge exports models with 2 there"),
        ({"language_config": {**LLAMA, "vocab_size": 301}}, "embed_tokens.weight is [300, 32], expected [301, 32]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**JANUS, **change}))
        code, said = export("janus", "--checkpoint", tmp_path, "--grid", "4x4", "--output", tmp_path / "x.bundle")
        assert code == 1
        assert message in " ".join(said.split()), said


def test_special_words_that_nothing_tells_are_asked_for(tmp_path: Path, folder: Path) -> None:
    """A vocabulary without the published ids, and no tokenizer beside the weights."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).symlink_to(folder / name)
    code, said = export("janus", "--checkpoint", tmp_path, "--grid", "4x4", "--output", tmp_path / "x.bundle")
    assert code == 1
    assert "prompts have the id 100016 of a vocabulary of 300: use the tokenizer.json" in " ".join(said.split())


def test_graphs_of_lower_precision_read_their_own_weights(bundle: Path, tmp_path: Path) -> None:
    """The bias of the logits stays float32, and must not be looked for where the float32 graph has it."""
    copy = Path(shutil.copytree(bundle, tmp_path / "x.bundle"))
    add_graphs(open_bundle(copy), "fp16")
    stored = onnx.load(copy / "graphs/fp16/step.onnx", load_external_data=True)
    bias = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stored.graph.initializer}["output.codes.bias"]
    wide = onnx.load(copy / "graphs/fp32/step.onnx", load_external_data=True)
    wanted = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in wide.graph.initializer}["output.codes.bias"]
    np.testing.assert_array_equal(bias, wanted)
