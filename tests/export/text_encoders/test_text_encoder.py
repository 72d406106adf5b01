"""Folders of text encoders in each form that the hub has, their graphs, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import DIMENSIONS, WIDTH, change_config, features_model, random_t5
from transformers import T5EncoderModel, T5ForConditionalGeneration

from arforge.export.exporter import export_text_encoder, open_text_encoder_of
from arforge.export.stored_tensors import load_whole
from arforge.export.text_encoders import t5 as t5_module
from arforge.export.text_encoders.text_encoder import TextEncoder, check_precision, open_text_encoder
from arforge.runner import step_graph
from arforge.runner.backends.onnxruntime_session import contract_of, open_session
from arforge.runner.bundle import ClassCondition, FeaturesCondition, Graph
from arforge.runner.bundle.names import foreign
from arforge.runner.errors import CheckpointError

WEIGHTS = "model.safetensors"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(one: TextEncoder, model: T5EncoderModel) -> bool:
    """Whether all parameters are those of transformers' model."""
    state = model.state_dict()
    return set(one.checkpoint.tensors) == set(t5_module.checkpoint_shapes(one.config)) and all(
        torch.equal(one.checkpoint.tensor(name).float(), state[name]) for name in one.checkpoint.tensors
    )


def test_facts_are_those_of_the_folder(t5_folder: Path, t5: T5EncoderModel) -> None:
    opened = open_text_encoder(t5_folder, WIDTH)
    assert (opened.width, opened.vocabulary, opened.layers) == (WIDTH, DIMENSIONS["vocab_size"], 2)
    assert opened.parameters == sum(parameter.numel() for parameter in t5.parameters())
    assert opened.tokenizer == (t5_folder / "tokenizer.json").read_bytes()
    assert opened.notes == ()
    assert same(opened, t5)


def whole_model(t5: T5EncoderModel) -> T5ForConditionalGeneration:
    """Encoder and decoder."""
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(t5.config.__class__(**{**DIMENSIONS, "num_decoder_layers": 1})).eval()
    model.load_state_dict(t5.state_dict(), strict=False)
    return model


def test_sharded_folders_of_encoder_and_decoder_open(folder: Path, t5: T5EncoderModel) -> None:
    (folder / WEIGHTS).unlink()
    tokenizer = (folder / "tokenizer.json").read_bytes()
    whole_model(t5).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-0*.safetensors"))) > 3
    opened = open_text_encoder(folder)
    assert same(opened, t5)
    assert opened.tokenizer == tokenizer
    assert opened.notes[0].startswith("read its ")
    assert opened.notes[1].startswith("left out 1")  # tensors of the decoder
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="lists .* parts, and model-00002-of-.* is not beside it: put all parts"):
        open_text_encoder(folder)


def test_torchs_files_open_whole_and_in_shards(folder: Path, t5: T5EncoderModel) -> None:
    (folder / WEIGHTS).unlink()
    state = whole_model(t5).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "training_args.bin").write_bytes(b"x")
    assert same(open_text_encoder(folder), t5)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: state[name] for name in chosen}, folder / f"pytorch_model-0000{part}-of-00002.bin")
    assert same(open_text_encoder(folder), t5)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="is part 1 of 2, and pytorch_model-00002-of-00002.bin is not beside it"):
        open_text_encoder(folder)


def test_other_files_of_the_hub_beside_it_do_not_matter(folder: Path, t5: T5EncoderModel) -> None:
    for name in ("tf_model.h5", "flax_model.msgpack", "spiece.model", "README.md", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not read")
    assert same(open_text_encoder(folder), t5)


def test_the_table_of_words_has_two_names(folder: Path, t5: T5EncoderModel) -> None:
    state = tensors(folder)
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    save_file(state, folder / WEIGHTS)
    assert same(open_text_encoder(folder), t5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_weights_are_read(folder: Path, kind: torch.dtype) -> None:
    save_file({name: tensor.to(kind) for name, tensor in tensors(folder).items()}, folder / WEIGHTS)
    assert open_text_encoder(folder).checkpoint.precision in {"fp32", "fp16", "bf16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"drop": "encoder.final_layer_norm.weight"},
            "is not a T5 encoder checkpoint of these dimensions: missing",
        ),
        ({"drop": "shared.weight"}, "missing shared.weight. It is of that family, but not whole"),
        (
            {"config": {"num_layers": 3}},
            r"missing encoder.block.2.* It is of that family: check the dimensions \(",
        ),
        ({"config": {"d_ff": 50}}, r"other dimensions than its config.json says: .*wi_0.weight is \[48, 32\]"),
        ({"config": {"feed_forward_proj": "relu"}}, "missing .*wi.weight.*; unexpected .*wi_0.weight"),
        ({"config": {"vocab_size": 300}}, r"other dimensions than its config.json says: shared.weight is \[224, 32\]"),
        ({"width": 48}, "gives features of 32 numbers, the model reads 48: use the text encoder"),
        ({"remove": "config.json"}, "has no config.json: name the folder of a text encoder in the hub's layout"),
        ({"remove": WEIGHTS}, "no checkpoint at .*: the folder has no .safetensors"),
        ({"remove": "tokenizer.json"}, "has no tokenizer.json, nor a spiece.model"),
        ({"write": b"version https://git-lfs.github.com/spec/v1\n"}, "model.safetensors is a Git LFS pointer"),
        ({"write": b"<html>"}, "model.safetensors is a web page"),
        ({"write": b"\x10\0\0\0\0\0\0\0{}"}, "model.safetensors is not a whole safetensors file"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    if "drop" in change:
        save_file({k: v for k, v in tensors(folder).items() if k != change["drop"]}, folder / WEIGHTS)
    change_config(folder, **change.get("config", {}))
    if "remove" in change:
        (folder / change["remove"]).unlink()
    if "write" in change:
        (folder / WEIGHTS).write_bytes(change["write"])
    with pytest.raises(CheckpointError, match=message):
        open_text_encoder(folder, change.get("width", WIDTH))


def test_what_is_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="model.safetensors is a file: name the folder of a text encoder"):
        open_text_encoder(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="gone is not there: name the folder of a text encoder"):
        open_text_encoder(folder / "gone")


def test_models_that_read_no_features_have_no_text_encoder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="llamagen models read no features of prompts: leave the text encoder"):
        open_text_encoder_of(folder, "llamagen", ClassCondition(10, 32, 42), "fp32")
    with pytest.raises(CheckpointError, match="a T5 overflows in fp16: store the text encoder in fp32 or bf16"):
        open_text_encoder_of(folder, "tiny", FeaturesCondition(20, WIDTH, "clean"), "fp16")
    with pytest.raises(CheckpointError, match="a text encoder is not stored in int8: use fp32 or bf16"):
        check_precision("int8")
    assert open_text_encoder_of(folder, "tiny", FeaturesCondition(20, WIDTH, "clean"), "bf16").width == WIDTH


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, t5_folder: Path) -> Path:
    """The graph of a text encoder in that precision, written."""
    stage = tmp_path_factory.mktemp("stage")
    precision = request.param
    graphs, tokenizer = export_text_encoder(open_text_encoder(t5_folder), stage, precision)
    place = f"graphs/{precision}"
    assert graphs == [Graph("text", precision, f"{place}/text.onnx", f"{place}/weights/text.weights")]
    assert (stage / tokenizer).read_bytes() == (t5_folder / "tokenizer.json").read_bytes()
    assert list(foreign(stage, ())) == []
    return stage / graphs[0].path


def test_graphs_keep_the_contract(written: Path) -> None:
    onnx.checker.check_model(written, full_check=True)
    wanted, found = step_graph.text(features_model()), contract_of(open_session(written, 1))
    assert step_graph.difference(wanted.inputs, found.inputs) is None
    assert step_graph.difference(wanted.outputs, found.outputs) is None


def test_graphs_are_lean_and_standard(written: Path) -> None:
    model = onnx.load(written, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["Attention"], count["RMSNormalization"], count["MatMul"]) == (2, 5, 14)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in stored]
    inside = [tensor for tensor in stored.values() if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(tensor.ByteSize() < 1000 for tensor in inside)
    kind = onnx.TensorProto.BFLOAT16 if "bf16" in written.parts else onnx.TensorProto.FLOAT
    assert {tensor.data_type for tensor in stored.values() if tensor not in inside} == {kind}
    assert written.stat().st_size < 40_000
    assert len(stored) - len(inside) == 3 + 2 * 9
    assert not model.metadata_props


def test_weights_are_the_folders(written: Path, t5: T5EncoderModel) -> None:
    state, model = t5.state_dict(), load_whole(written)
    for tensor in model.graph.initializer:
        if tensor.name in state:
            expected = state[tensor.name]
            array = onnx.numpy_helper.to_array(tensor)
            found = torch.from_numpy(array.astype(np.float32))
            if "bf16" in written.parts:
                expected = expected.to(torch.bfloat16).float()
            if found.dim() == 2 and tensor.name != "shared.weight":
                found = found.t()
            assert torch.equal(found, expected), tensor.name


@torch.no_grad()
def test_graphs_give_transformers_features(written: Path) -> None:
    model = random_t5()
    if "bf16" in written.parts:  # rounded weights, computing in float32
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    session = open_session(written, 1)
    for prompts, length in ((1, 1), (1, 7), (3, 150)):
        ids = torch.randint(0, DIMENSIONS["vocab_size"], (prompts, length), generator=torch.Generator().manual_seed(2))
        mask = torch.ones_like(ids)
        mask[1:2, length // 3 :] = 0
        mask[2:3, 1:] = 0
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        found = session.run(["features"], {"ids": ids.numpy(), "mask": mask.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_non_finite_weights_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    state = tensors(folder)
    state["encoder.block.1.layer.1.DenseReluDense.wo.weight"][3, 5] = torch.nan
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="tensor encoder.block.1.*wo.weight holds non-finite"):
        export_text_encoder(open_text_encoder(folder), tmp_path)
