"""The same weights, wrapped in the ways of trainers and hubs, are read alike; what was chosen is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIG
from torch import Tensor

from arforge.export import tensor_files
from arforge.export.checkpoint import Checkpoint, open_checkpoint
from arforge.export.families.llamagen import checkpoint_shapes
from arforge.export.recognition import check_shapes
from arforge.runner.errors import CheckpointError

Weights = dict[str, Tensor]
SHAPES = checkpoint_shapes(CONFIG)


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def assert_holds(opened: Checkpoint, weights: Weights) -> None:
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert all(torch.equal(opened.tensor(name), tensor) for name, tensor in weights.items())
    check_shapes(opened, SHAPES, "llamagen")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("flat", [True, False])
def test_prefixes_that_all_names_share_are_taken_off(tmp_path: Path, weights: Weights, prefix: str, flat: bool) -> None:
    if flat:
        save_file(prefixed(prefix, weights), tmp_path / "x")
    else:
        torch.save({"state_dict": prefixed(prefix, weights), "epoch": 3}, tmp_path / "x")
    opened = open_checkpoint(tmp_path / "x")
    assert_holds(opened, weights)
    shown = prefix.replace("_orig_mod.", "")
    assert any(f"took the prefix {shown!r} off" in note for note in opened.notes) == bool(shown)


def test_names_inside_are_freed_of_torchs_wrappers(tmp_path: Path, weights: Weights) -> None:
    wrapped = {name.replace("layers.0.", "layers.0._fsdp_wrapped_module._orig_mod."): t for name, t in weights.items()}
    torch.save(wrapped, tmp_path / "x.pt")
    assert_holds(open_checkpoint(tmp_path / "x.pt"), weights)


def test_a_prefix_that_some_names_lack_stays(tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(1), "lm_head": torch.ones(1)}, tmp_path / "x.safetensors")
    assert set(open_checkpoint(tmp_path / "x.safetensors").shapes) == {"model.a", "lm_head"}


@pytest.mark.parametrize("name", ["layers.0.attention.kv_cache.k_cache", "freqs_cis", "layers.1.rope.inv_freq"])
def test_caches_and_computed_tables_are_left_out_and_named(tmp_path: Path, weights: Weights, name: str) -> None:
    torch.save({"model": {**weights, name: torch.zeros(2)}}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    assert_holds(opened, weights)
    assert f"left out what is computed anew: {name}" in opened.notes


def test_whole_numbers_are_no_weights(tmp_path: Path, weights: Weights) -> None:
    extra = {"seen": torch.tensor(3), "causal": torch.ones(4, 4, dtype=torch.bool)}
    torch.save({"model": {**weights, **extra}}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    assert_holds(opened, weights)
    assert "left out whole numbers, which are no weights: seen, causal" in opened.notes
    quantised = {**weights, "output.weight": weights["output.weight"].to(torch.int8)}
    save_file(quantised, tmp_path / "y.safetensors")
    message = r"missing output.weight\. It is of that family, but output.weight holds whole numbers: quantised"
    with pytest.raises(CheckpointError, match=message):
        check_shapes(open_checkpoint(tmp_path / "y.safetensors"), SHAPES, "llamagen")
    torch.save({"model": extra}, tmp_path / "z.pt")
    with pytest.raises(CheckpointError, match="holds no weights: its tensors are seen, causal"):
        open_checkpoint(tmp_path / "z.pt")


@pytest.mark.parametrize("flat", [True, False])
def test_of_trained_and_averaged_weights_one_is_taken_and_said(tmp_path: Path, weights: Weights, flat: bool) -> None:
    other = {name: 2 * tensor for name, tensor in weights.items()}
    if flat:
        save_file({**prefixed("ema.", other), **prefixed("model.", weights)}, tmp_path / "x")
    else:
        torch.save({"ema": other, "model": weights, "optimizer": {"state": {0: torch.ones(1)}}}, tmp_path / "x")
    opened = open_checkpoint(tmp_path / "x")
    assert_holds(opened, weights)
    assert opened.notes == ("took its weights 'model'; --weights ema takes 'ema'",)
    assert_holds(open_checkpoint(tmp_path / "x", "ema"), other)
    averaged = open_checkpoint(tmp_path / "x", averaged=True, option="--image-tokenizer-weights")
    assert_holds(averaged, other)
    assert averaged.notes == ("took its weights 'ema'; --image-tokenizer-weights model takes 'model'",)
    with pytest.raises(CheckpointError, match="has no weights 'best': it has 'model', 'ema'"):
        open_checkpoint(tmp_path / "x", "best")


def test_averaged_weights_alone_are_taken_and_said(tmp_path: Path, weights: Weights) -> None:
    torch.save({"ema": weights}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    assert_holds(opened, weights)
    assert "took its weights 'ema', averaged in training, since it has no others" in opened.notes
    with pytest.raises(CheckpointError, match="has no weights 'model': it has 'ema'"):
        open_checkpoint(tmp_path / "x.pt", "model")


def test_a_wrapper_in_a_wrapper_is_opened(tmp_path: Path, weights: Weights) -> None:
    torch.save({"state_dict": {"model": weights}}, tmp_path / "x.pt")
    assert_holds(open_checkpoint(tmp_path / "x.pt"), weights)


@pytest.fixture
def shards(tmp_path: Path, weights: Weights) -> Path:
    """A folder with a checkpoint in two parts, as links to blobs without a suffix, and an index."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    parts = [dict(list(weights.items())[:7]), dict(list(weights.items())[7:])]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(part, tmp_path / f"blob{number}")
        (folder / name).symlink_to(tmp_path / f"blob{number}")
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "name", ["", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
)
@pytest.mark.parametrize("index", [True, False])
def test_parts_are_read_as_one(shards: Path, weights: Weights, name: str, index: bool) -> None:
    if not index:
        (shards / "model.safetensors.index.json").unlink()
        if name.endswith(".json"):
            return
    opened = open_checkpoint(shards / name)
    assert_holds(opened, weights)
    assert [file.name for file in opened.files] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def test_missing_parts_are_named(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").unlink()
    for name, what in (("", "lists 2 parts"), ("model-00001-of-00002.safetensors", "is part 1 of 2")):
        message = f"{what}, and model-00002-of-00002.safetensors is not beside it: put all parts into one folder"
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(shards / name)


def test_a_tensor_in_two_parts_is_refused(shards: Path, tmp_path: Path, weights: Weights) -> None:
    save_file(weights, tmp_path / "blob2")
    with pytest.raises(CheckpointError, match=r"00002-of-00002.* holds \S+, as another part does"):
        open_checkpoint(shards)


def test_a_lone_part_under_another_name_is_not_said_to_have_wrong_dimensions(tmp_path: Path, weights: Weights) -> None:
    save_file({name: t for name, t in weights.items() if name != "output.weight"}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="of that family, but not whole: a part of it is in another file"):
        check_shapes(open_checkpoint(tmp_path / "x.safetensors"), SHAPES, "llamagen")
    save_file({**weights, "head.bias": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="unexpected head.bias. It is of that family, with tensors that"):
        check_shapes(open_checkpoint(tmp_path / "y.safetensors"), SHAPES, "llamagen")


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path, weights: Weights) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at .*run: the folder has no .safetensors"):
        open_checkpoint(folder)
    torch.save({"model": weights}, folder / "last.pt")
    torch.save({}, folder / "optimizer.pt")
    assert_holds(open_checkpoint(folder), weights)
    torch.save({"model": weights}, folder / "best.pt")
    with pytest.raises(CheckpointError, match="holds several checkpoints: name one of best.pt, last.pt"):
        open_checkpoint(folder)
    save_file(weights, folder / "model.safetensors")
    assert open_checkpoint(folder).files == (folder / "model.safetensors",)
    (folder / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match="is a checkpoint of torch.distributed: make it one file first"):
        open_checkpoint(folder)


def test_what_is_neither_file_nor_folder_is_refused() -> None:
    with pytest.raises(CheckpointError, match="/dev/null is not a file"):
        open_checkpoint(Path("/dev/null"))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((torch.float32, torch.float32), "fp32"),
        ((torch.bfloat16, torch.float32), "bf16"),
        ((torch.float16, torch.float32), "fp16"),
        ((torch.float64, torch.bfloat16), "fp32"),
    ],
)
def test_the_precision_is_that_of_most_bytes(
    tmp_path: Path, kinds: tuple[torch.dtype, torch.dtype], expected: str
) -> None:
    save_file({"a": torch.ones(64, 64, dtype=kinds[0]), "b": torch.ones(8, dtype=kinds[1])}, tmp_path / "x")
    assert open_checkpoint(tmp_path / "x").precision == expected


def test_a_model_of_the_hubs_cache_is_its_main_snapshot(shards: Path, tmp_path: Path, weights: Weights) -> None:
    model = tmp_path / "models--org--name"
    (model / "snapshots").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="folder in a download cache, with no snapshot"):
        open_checkpoint(model)
    shards.rename(model / "snapshots" / "abc")
    assert_holds(open_checkpoint(model), weights)
    (model / "snapshots" / "older").mkdir()
    with pytest.raises(CheckpointError, match="with several snapshots: name one of abc, older"):
        open_checkpoint(model)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc\n")
    assert_holds(open_checkpoint(model), weights)


def test_a_link_whose_blob_is_gone_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "blob2").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors is a link to a file that is gone"):
        open_checkpoint(shards)


def test_an_index_that_names_what_is_not_there_is_refused(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["layers.7.no.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    message = r"index.json lists layers.7.no.weight in model-00002-of-00002.safetensors, which does not hold it"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(shards)
    content["weight_map"]["layers.7.no.weight"] = "model-00003-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lists 3 parts, and model-00003-of-00003.safetensors is not beside it"):
        open_checkpoint(shards)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_part_that_was_cut_is_named(shards: Path, kept: float) -> None:
    blob = (shards / "model-00002-of-00002.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[: int(kept * blob.stat().st_size)])
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors is not a whole safetensors file"):
        open_checkpoint(shards)


@pytest.fixture
def torch_shards(tmp_path: Path, weights: Weights) -> Path:
    """As `shards`, in files of torch."""
    folder = tmp_path / "torch"
    folder.mkdir()
    parts = [dict(list(weights.items())[:7]), dict(list(weights.items())[7:])]
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_torch_parts_are_read_as_one_by_rows(
    torch_shards: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "REMAP", 2000)  # mapped anew time and again
    opened = open_checkpoint(torch_shards)
    assert_holds(opened, weights)
    for name, tensor in weights.items():
        assert torch.equal(opened.rows(name).read(1, len(tensor)), tensor[1:])
    last = torch_shards / "pytorch_model-00002-of-00002.bin"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="pytorch_model-00002-of-00002.bin is not a whole torch checkpoint"):
        open_checkpoint(torch_shards)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, weights: Weights) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    opened = open_checkpoint(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="x.safetensors has become shorter while it was read"):
        opened.tensor("output.weight")
