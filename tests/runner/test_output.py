from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from arforge.runner import RequestError
from arforge.runner.images import save_npz, save_png, save_tokens
from arforge.runner.output import check_outputs, is_stream, write_whole, writing

TOKENS = np.arange(6).reshape(2, 3)
PICTURES = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)


def write(path: Path, content: bytes = b"new") -> None:
    write_whole(path, lambda file: file.write(content))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("what", ["tokens", "png", "npz"])
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path, what: str) -> None:
    pipe, plain = tmp_path / "pipe", tmp_path / "plain"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    check_outputs({"--tokens": pipe})
    for path in (pipe, plain):
        if what == "tokens":
            save_tokens(path, TOKENS)
        else:
            (save_png if what == "png" else save_npz)(path, PICTURES)
    reader.join(timeout=20)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    if what == "npz":  # an archive in a stream says its sizes at other places
        (tmp_path / "received").write_bytes(received[0])
        with np.load(tmp_path / "received") as loaded:
            np.testing.assert_array_equal(loaded["arr_0"], PICTURES)
    else:
        assert received == [plain.read_bytes()]
    assert is_stream(pipe)
    assert not is_stream(plain)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    check_outputs({"--output": device, "--npz": device})  # any number of outputs may go to one
    try:
        write(device)
    except RequestError:
        pytest.skip("a file system without devices")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert names(tmp_path) == ["null"]


def test_standard_output_gets_its_part_in_order(tmp_path: Path) -> None:
    """Also where it is a file: opened anew, that would be written from its beginning."""
    program = (
        "from pathlib import Path\n"
        "from arforge.runner.output import check_outputs, write_whole\n"
        "check_outputs({'--tokens': Path('/dev/stdout')})\n"
        "print('before')\n"
        "write_whole(Path('/dev/stdout'), lambda file: file.write(b'content\\n'))\n"
        "write_whole(Path('/dev/fd/1'), lambda file: file.write(b'more\\n'))\n"
        "print('after')\n"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ncontent\nmore\nafter\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep/target", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("deep/target")
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["target"]


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(RequestError, match=r"cannot write .*link: Too many levels"):
        write(tmp_path / "link")


def test_an_existing_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    write(path)
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_new_file_has_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_not_whole_yet_is_for_its_owner_alone_where_the_old_file_was(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(0o600)
    with writing(path) as file:
        file.write(b"new")
        (partial,) = (other for other in tmp_path.iterdir() if other != path)
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600


def test_a_file_in_a_folder_that_may_not_be_written_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old content")
    really = os.open

    def no_new_file(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(name, flags, mode)

    monkeypatch.setattr(os, "open", no_new_file)
    check_outputs({"--json": path})
    assert path.read_bytes() == b"old content"
    write(path)
    assert path.read_bytes() == b"new"
    with pytest.raises(RequestError, match=r"cannot write .*other: Permission denied"):
        check_outputs({"--json": tmp_path / "other"})


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM, errno.EXDEV])
def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A mount of its own, as containers have; somebody else's file in a sticky folder."""
    path = tmp_path / "file"
    path.write_bytes(b"old content")

    def busy(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", busy)
    write(path)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    for attempt in (lambda: check_outputs({"--json": path}), lambda: write(path)):
        with pytest.raises(RequestError, match=r"cannot write .*kept: Permission denied"):
            attempt()
    assert path.read_bytes() == b"old"


def test_an_open_file_is_written_to_whoever_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with (tmp_path / "open").open("wb") as file:
        path = Path(f"/dev/fd/{file.fileno()}")
        check_outputs({"--tokens": path})
        write(path)
    assert (tmp_path / "open").read_bytes() == b"new"


def test_outputs_are_tried_without_leaving_anything(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    check_outputs({"--output": tmp_path / "new", "--npz": tmp_path / "old", "--tokens": None})
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/x", r"cannot write .*missing/x: No such file or directory \(make the folder .*missing first\)"),
        ("file/x", "cannot write .*file/x: Not a directory"),
        ("folder", "cannot write .*folder: it is a folder"),
        ("n" * 300, "cannot write .*n: File name too long"),
        ("zero\0", "cannot write .*: embedded null"),
    ],
)
def test_an_output_that_cannot_be_is_said_before_the_work(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=message):
        check_outputs({"--output": tmp_path / path})


@pytest.mark.parametrize("other", ["same", "link", "folder/../same"])
def test_two_outputs_at_one_place_are_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("same")
    with pytest.raises(RequestError, match="--output and --npz both write .*: name two files"):
        check_outputs({"--output": tmp_path / "same", "--npz": tmp_path / other})


def test_a_socket_is_named_as_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(RequestError, match="cannot write socket: No such device or address"):
            write(Path("socket"))
    assert stat.S_ISSOCK(Path("socket").stat().st_mode)


def test_a_name_that_is_no_text_works(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.npy")
    check_outputs({"--tokens": path})
    save_tokens(path, TOKENS)
    np.testing.assert_array_equal(np.load(path), TOKENS)
