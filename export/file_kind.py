"""Tells by its content what a file is that was given for a checkpoint: its name may say something else, or nothing."""

from __future__ import annotations

import codecs
import re
import shlex
import zipfile
from pathlib import Path
from typing import Literal

from arforge.runner.errors import CheckpointError

HEAD = 1024  # bytes that tell
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}
OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and name the checkpoint inside",
    b"Rar!": "a RAR archive: unpack it, and name the checkpoint inside",
    b"\x93NUMPY": "a NumPy array, not a checkpoint",
    b"\x89HDF\r\n": "an HDF5 file: save the weights with torch or safetensors",
    b"GGUF": "a GGUF file, whose weights are quantised: use the checkpoint that it was made from",
    b"\x89PNG": "a picture, not a checkpoint",
    b"\xff\xd8\xff": "a picture, not a checkpoint",
    b"%PDF": "a PDF document, not a checkpoint",
}


def format_of(path: Path) -> Literal["safetensors", "torch"]:
    """How the tensors of a file are stored, by its content. Raises CheckpointError for what holds none, naming it."""
    head = read_head(path)
    if not head:
        raise CheckpointError(f"{path} is empty: download it again")
    for magic, (name, command) in COMPRESSED.items():
        if head.startswith(magic):
            raise CheckpointError(
                f"{path} is compressed by {name}: unpack it first, {command} {shlex.quote(str(path))} > FILE"
            )
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {what}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive: unpack it, and name the checkpoint inside")
    if head.startswith(b"PK\3\4"):
        check_zip(path)
        return "torch"
    text = text_of(head)
    if text is not None:
        raise CheckpointError(f"{path} is {text_kind(text)}")
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not head.startswith(b"\x80")):
        return "safetensors"
    return "torch"


def read_head(path: Path) -> bytes:
    """The first bytes of a file. Raises CheckpointError if it may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def text_of(head: bytes) -> str | None:
    """The beginning of a text file, or None for another one."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    return None if re.search(r"[^\t\n\f\r\x1b -\U0010ffff]", text) else text


def text_kind(text: str) -> str:
    """What a text file is that is no checkpoint, and what to do."""
    start = text.lstrip().lower()
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer, which stands for the file: fetch the file itself (git lfs pull)"
    if start.startswith(("<!doctype html", "<html")) or "<html" in start:
        title = re.search(r"<title[^>]*>\s*(.{1,80}?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
        named = f" ({title[1]!r})" if title else ""
        return f"a web page{named}, which came in place of the file: download the file itself"
    if start.startswith("<"):
        return "an XML document, perhaps a server's refusal, not a checkpoint: download the file again"
    if start.startswith(("{", "[")):
        return "a JSON file, not a checkpoint: name the file that holds the tensors"
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"a text file that begins with {first[:60]!r}, not a checkpoint: download the file itself"


def check_zip(path: Path) -> None:
    """Raise CheckpointError for an archive that torch did not write. One that is cut is left to torch's reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    parts = {name.partition("/")[2] for name in names}
    if "data.pkl" in parts and "constants.pkl" in parts:
        raise CheckpointError(f"{path} is a TorchScript program: save its state_dict with torch.save instead")
    if "data.pkl" in parts:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is a NumPy archive (.npz): save the weights with torch or safetensors")
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    raise CheckpointError(
        f"{path} is a zip archive of {listed or 'nothing'}: unpack it, and name the checkpoint inside"
    )
