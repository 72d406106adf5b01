"""Each thing that comes in place of a checkpoint is called what it is, whatever its name says."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arforge.export.checkpoint import open_checkpoint
from arforge.runner.errors import CheckpointError


def zipped(**parts: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return buffer.getvalue()


def numpy_file(archive: bool) -> bytes:
    buffer = io.BytesIO()
    if archive:
        np.savez(buffer, a=np.zeros(3))
    else:
        np.save(buffer, np.zeros(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
KINDS = {
    "pointer": (POINTER, r"is a Git LFS pointer, .*: fetch the file itself \(git lfs pull\)"),
    "page": (
        b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>\n Virus scan warning </title>",
        r"is a web page \('Virus scan warning'\).*: download the file itself",
    ),
    "page without a title": (b"<HTML><body>x", "is a web page, which came in place of the file"),
    "refusal": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document"),
    "words": ("Entrée introuvable\n".encode(), "is a text file that begins with 'Entrée introuvable', not a check"),
    "cut in a letter": (("x" * 1023 + "é").encode(), "is a text file that begins with 'xxx"),
    "json": (b'{"dim": 64}', "is a JSON file, not a checkpoint: name the file that holds the tensors"),
    "gzip": (gzip.compress(b"x"), r"is compressed by gzip: unpack it first, gzip -dc '.*a file' > FILE"),
    "bzip2": (bz2.compress(b"x"), "is compressed by bzip2: unpack it first, bzip2 -dc"),
    "xz": (lzma.compress(b"x"), "is compressed by xz"),
    "tar": (tarred(), "is a tar archive: unpack it, and name the checkpoint inside"),
    "zip": (zipped(**{"a.txt": b"", "b.txt": b""}), r"is a zip archive of a.txt, b.txt: unpack it"),
    "script": (zipped(**{"x/data.pkl": b"", "x/constants.pkl": b""}), "is a TorchScript program: save its state_dict"),
    "npz": (numpy_file(archive=True), r"is a NumPy archive \(.npz\)"),
    "npy": (numpy_file(archive=False), "is a NumPy array"),
    "gguf": (b"GGUF\3\0\0\0", "is a GGUF file, whose weights are quantised"),
    "picture": (b"\x89PNG\r\n\x1a\n", "is a picture"),
}


@pytest.mark.parametrize("name", ["a file", "a file.pt", "a file.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_called_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    content, message = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message.replace("a file", name)) as raised:
        open_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_tensors_are_read_whatever_the_files_name_says(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2, 3)}
    save_file(weights, tmp_path / "really.safetensors")
    torch.save(weights, tmp_path / "really.pt")
    for kind, pretended in (("safetensors", "x.pt"), ("pt", "x.safetensors"), ("safetensors", "blob"), ("pt", "b2")):
        (tmp_path / pretended).write_bytes((tmp_path / f"really.{kind}").read_bytes())
        assert torch.equal(open_checkpoint(tmp_path / pretended).tensor("a"), weights["a"])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_refused_object_is_named_and_nobody_is_told_to_switch_safety_off(tmp_path: Path, legacy: bool) -> None:
    content = {"model": {"a": torch.ones(2)}, "loss": np.float64(1.5)}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"\(an object made by numpy\.\S*scalar\), and arforge does not"
    ) as raised:
        open_checkpoint(tmp_path / "x.pt")
    assert "weights_only" not in str(raised.value)
    assert "safe_globals" not in str(raised.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pt").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.pt: Permission denied$"):
        open_checkpoint(tmp_path / "x.pt")
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.pt: Permission denied$"):
        open_checkpoint(tmp_path / "x.pt")


def test_an_index_is_read_as_json_alone_where_it_is_one(tmp_path: Path) -> None:
    for name, content, message in (
        ("empty", {"weight_map": {}}, "is an index of a checkpoint's parts that lists none"),
        ("away", {"weight_map": {"a": "../x.pt"}}, "lists '../x.pt', not a file beside it"),
        ("number", {"weight_map": {"a": 3}}, "lists 3, not a file beside it"),
        ("gone", {"weight_map": {"a": "x.pt"}}, "lists 1 parts, and x.pt is not beside it"),
        ("other", {"weights": {}}, "is a JSON file"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)
