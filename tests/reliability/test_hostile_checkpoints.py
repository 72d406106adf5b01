"""Checkpoints made to do harm: nothing in them is executed, and no size that they claim is allocated."""

from __future__ import annotations

import collections
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from arforge.export.checkpoint import open_checkpoint
from arforge.runner.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("_little_memory")
SOUND = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
TWO = {**SOUND, "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]}}


def safetensors(header: object, body: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def changed(**facts: Any) -> dict[str, Any]:
    return {"a": {**SOUND["a"], **facts}}


LIES = {
    "header longer than the file": safetensors(SOUND, length=10**6),
    "header of 64 bits": safetensors(SOUND, length=2**64 - 1),
    "header that is no JSON": safetensors(b"{" * 40),
    "deep header": safetensors(b'{"a":' * 50_000),
    "end beyond the file": safetensors(changed(shape=[2**20], data_offsets=[0, 2**22])),
    "end of 64 bits": safetensors(changed(data_offsets=[0, 2**64 - 1])),
    "end before the start": safetensors(changed(data_offsets=[16, 0])),
    "negative start": safetensors(changed(data_offsets=[-16, 0])),
    "shape larger than the data": safetensors(changed(shape=[2**40])),
    "shape that overflows": safetensors(changed(shape=[2**33, 2**33])),
    "shape smaller than the data": safetensors(changed(shape=[1])),
    "unknown type": safetensors(changed(dtype="F31")),
    "overlapping tensors": safetensors({**SOUND, "b": {**SOUND["a"], "data_offsets": [8, 24]}}, bytes(24)),
    "hole between tensors": safetensors({**SOUND, "b": {**SOUND["a"], "data_offsets": [32, 48]}}, bytes(48)),
    "data beyond the last tensor": safetensors(SOUND, bytes(32)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .*: download it again"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_what_the_lies_start_from_is_sound(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors(TWO, bytes(32)))
    assert open_checkpoint(tmp_path / "x.safetensors").shapes == {"a": (2, 2), "b": (2, 2)}
    (tmp_path / "y.safetensors").write_bytes(save({"a": torch.ones(3)}))
    assert open_checkpoint(tmp_path / "y.safetensors").tensor("a").sum() == 3


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def opens_a_file(marker: Path) -> dict[str, Any]:
    return {
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "import": Call(__import__, "antigravity"),
        "getattr": Call(getattr, Path(marker), "touch"),
        "torch": Call(torch.save, {}, str(marker)),
        "nested": collections.OrderedDict(a=[(Call(open, str(marker), "w"),)]),
    }


@pytest.mark.parametrize("kind", opens_a_file(Path("x")))
@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_a_pickle_that_would_call_something_is_refused_and_calls_nothing(
    tmp_path: Path, kind: str, container: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "x.pt"
    content = {"model": {"a": torch.ones(2)}, "payload": opens_a_file(marker)[kind]}
    if container == "bare":
        path.write_bytes(pickle.dumps({"payload": content["payload"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        open_checkpoint(path)
    assert not marker.exists()


def rewritten(path: Path, change: Any) -> None:
    """The archive again, with another pickle inside."""
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_a_tensor_that_claims_more_than_its_storage_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.zeros(7, 1000)}}, path)

    def lie(content: bytes) -> bytes:
        assert content.count(b"M\xe8\x03") == 2  # 1000 in the shape and in the strides
        return content.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f", 1)

    rewritten(path, lie)
    with pytest.raises(CheckpointError, match="is not a whole torch checkpoint|more than tensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"\x85.", b"\x80\x02.", b"\x80\x02]q\x00(.", b"(" * 5000, b"\x80\x02X\xff\x00\x00\x00"]
)
def test_a_pickle_that_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)],
    ids=["without data", "sparse", "complex"],
)
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"model": {"a": tensor}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt.*(tensor a is not a plain one|more than tensors|not a whole)"):
        open_checkpoint(tmp_path / "x.pt")
