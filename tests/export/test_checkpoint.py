from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIG
from torch import Tensor

from arforge.export.checkpoint import open_checkpoint
from arforge.export.families.llamagen import checkpoint_shapes
from arforge.export.recognition import check_shapes
from arforge.runner.errors import CheckpointError

SHAPES = checkpoint_shapes(CONFIG)
Weights = dict[str, Tensor]


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def check(path: Path) -> None:
    check_shapes(open_checkpoint(path), SHAPES, "llamagen")


def saved(path: Path, weights: object, **options: object) -> Path:
    torch.save(weights, path, **options)
    return path


def assert_holds(path: Path, weights: Weights) -> None:
    opened = open_checkpoint(path)
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        assert torch.equal(opened.tensor(name), tensor)
    check(path)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_weights_are_found_at_the_top_or_in_a_wrapper(tmp_path: Path, weights: Weights, wrapper: str | None) -> None:
    content = weights if wrapper is None else {wrapper: weights, "steps": 300000}
    assert_holds(saved(tmp_path / "x.pt", content), weights)


def test_safetensors_hold_the_same(tmp_path: Path, weights: Weights) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    assert_holds(tmp_path / "x.safetensors", weights)


def test_the_format_before_torch_1_6_is_read(tmp_path: Path, weights: Weights) -> None:
    path = saved(tmp_path / "x.pt", {"model": weights}, _use_new_zipfile_serialization=False)
    assert_holds(path, weights)


def test_a_command_line_namespace_beside_the_weights_is_allowed(tmp_path: Path, weights: Weights) -> None:
    content = {"model": weights, "args": argparse.Namespace(lr=1e-4, gpt_model="GPT-B"), "steps": 3}
    assert_holds(saved(tmp_path / "x.pt", content), weights)


def test_tables_that_are_recomputed_are_ignored(tmp_path: Path, weights: Weights) -> None:
    check(saved(tmp_path / "x.pt", {"model": {**weights, "freqs_cis": torch.zeros(65, 8, 2)}}))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["beside", "inside", "alone"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, weights: Weights, place: str, legacy: bool
) -> None:
    bomb = Bomb(tmp_path / "marker")
    content = {
        "beside": {"model": weights, "args": bomb},
        "inside": {"model": {**weights, "tok_embeddings.weight": bomb}},
        "alone": bomb,
    }[place]
    path = saved(tmp_path / "x.pt", content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="does not execute what a file contains.*Save its state_dict alone"):
        open_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "marker"), protocol=2))
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        open_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint at .*{name}"):
        open_checkpoint(tmp_path / name)


def test_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_an_empty_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"{name} is empty: download it again"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, weights: Weights, kind: str, share: float) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        saved(path, {"model": weights}, _use_new_zipfile_serialization=kind == "zip")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CheckpointError, match=rf"{path.name} is not a whole .*: download it again"):
        check(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(3)], "holds a list, not a table of tensors"),
        (torch.zeros(3), "holds a Tensor, not a table of tensors"),
        ({"model": {}, "steps": 3}, "holds no tensors"),
        ({"steps": 3, "args": "x"}, "holds no tensors: its keys are steps, args"),
    ],
    ids=["list", "tensor", "empty", "no tensors"],
)
def test_files_without_a_table_of_tensors_say_what_they_hold(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved(tmp_path / "x.pt", content))


def without(weights: Weights, *names: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name not in names}


CLASS_TABLE = "cls_embedding.embedding_table.weight"
FOREIGN = {
    "par": (
        lambda w: {**w, "spe_tok_embeddings.weight": torch.zeros(3, 64)},
        r"unexpected spe_tok_embeddings.weight\. It looks like a par checkpoint",
    ),
    "arpg": (
        lambda _: {"embeddings.weight": torch.zeros(4, 4), "layers.self_dec.0.attn.to_q.weight": torch.zeros(4, 4)},
        r"missing tok_embeddings.weight, .* and 14 more; unexpected embeddings.weight, .*It looks like a arpg",
    ),
    "tokenizer": (
        lambda _: {"quantize.embedding.weight": torch.zeros(32, 8), "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)},
        r"missing tok_embeddings.weight.*unexpected quantize.embedding.weight.*It looks like a VQ tokenizer checkpoint",
    ),
    "text": (
        lambda w: {**without(w, CLASS_TABLE), "cls_embedding.cap_proj.fc1.weight": torch.zeros(4, 4)},
        r"missing cls_embedding.*unexpected cls_embedding.cap_proj.fc1.weight\. It looks like a llamagen-t2i",
    ),
    "unknown": (
        lambda _: {"transformer.wte.weight": torch.zeros(4, 4)},
        r"unexpected transformer.wte.weight\. It looks like none of the families",
    ),
    "fewer layers": (
        lambda w: {name: tensor for name, tensor in w.items() if not name.startswith("layers.1.")},
        r"missing layers.1.*and 3 more\. It is of that family: check the dimensions \(--variant or --config\)",
    ),
    "more layers": (
        lambda w: {**w, "layers.2.attention.wo.weight": torch.zeros(64, 64)},
        r"unexpected layers.2.attention.wo.weight\. It is of that family",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_names_its_keys_and_its_family(tmp_path: Path, weights: Weights, kind: str) -> None:
    change, message = FOREIGN[kind]
    with pytest.raises(CheckpointError, match=f"is not a llamagen checkpoint of these dimensions: .*{message}"):
        check(saved(tmp_path / "x.pt", change(weights)))


def test_other_dimensions_are_listed_with_what_was_expected(tmp_path: Path, weights: Weights) -> None:
    narrow = {name: tensor[..., :48] for name, tensor in weights.items()}
    message = r"has other dimensions: tok_embeddings.weight is \[32, 48\], expected \[32, 64\]; .* and \d+ more"
    with pytest.raises(CheckpointError, match=message):
        check(saved(tmp_path / "x.pt", narrow))
    fewer = {**weights, CLASS_TABLE: torch.zeros(9, 64)}
    with pytest.raises(CheckpointError, match=rf"{CLASS_TABLE} is \[9, 64\], expected \[11, 64\]$"):
        check(saved(tmp_path / "y.pt", fewer))
