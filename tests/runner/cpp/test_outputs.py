"""Where arforge-run writes: the rules of the Python command's outputs, and images that are 8-bit or refused."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_users import NOBODY, readable

OTHER_ERROR = 1


def generate(release: Any, bundle: Path, *words: Any, status: int = 0, **options: Any) -> str:
    command = [release.program("arforge-run"), bundle, "--class", 1, "--schedule", "zipar:2", "--quiet", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def expected(release: Any, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("expected") / "tokens.npy"
    generate(release, bundle, "--tokens", path)
    return path.read_bytes()


def test_a_pipe_and_a_device_are_written_to(release: Any, bundle: Path, tmp_path: Path, expected: bytes) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        generate(release, bundle, "--tokens", pipe)
        assert reader.communicate()[0] == expected
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    try:
        os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        with (tmp_path / "full").open("wb"):
            pass
    except OSError:
        pytest.skip("devices are for root")
    said = generate(release, bundle, "--tokens", tmp_path / "full", status=OTHER_ERROR)
    assert f"cannot write {tmp_path / 'full'}: No space left on device" in said
    assert stat.S_ISCHR((tmp_path / "full").stat().st_mode)


def test_standard_output_takes_the_tokens_alone(release: Any, bundle: Path, tmp_path: Path, expected: bytes) -> None:
    command = [str(release.program("arforge-run")), str(bundle), "--class", "1", "--schedule", "zipar:2", "--quiet"]
    words = [*command, "--tokens", "/proc/self/fd/1"]
    assert subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout == expected
    with (tmp_path / "log").open("wb") as log:
        log.write(b"before\n")
        log.flush()
        subprocess.run(words, stdout=log, check=True)
    assert (tmp_path / "log").read_bytes() == b"before\n" + expected


def test_links_are_followed_and_owner_and_mode_stay(
    release: Any, bundle: Path, tmp_path: Path, expected: bytes
) -> None:
    (tmp_path / "there").write_text("before")
    (tmp_path / "there").chmod(0o640)
    if os.getuid() == 0:
        os.chown(tmp_path / "there", 1, 2)
    facts = (tmp_path / "there").stat()
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to("not-yet")
    for name in ("link", "dangling"):
        generate(release, bundle, "--tokens", tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == expected
    found = (tmp_path / "there").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (facts.st_mode, facts.st_uid, facts.st_gid)
    new = (tmp_path / "not-yet").stat()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(new.st_mode) == 0o666 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "link", "middle", "not-yet", "there"]


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
def test_an_open_file_is_written_to_whoever_it_belongs_to(release: Any, bundle: Path, expected: bytes) -> None:
    words = (bundle, "--class", 1, "--schedule", "zipar:2", "--quiet", "--tokens", "/proc/self/fd/1")
    command = [str(word) for word in (release.program("arforge-run"), *words)]
    with readable(bundle / "manifest.json", release.program("arforge-run")):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, user=NOBODY)
    assert done.stdout == expected


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
def test_a_file_in_a_folder_that_may_not_be_written_is_written_in_place(
    release: Any, bundle: Path, tmp_path: Path, expected: bytes
) -> None:
    with readable(tmp_path / "there", bundle / "manifest.json", release.program("arforge-run")):
        (tmp_path / "there").write_bytes(expected * 2)
        (tmp_path / "there").chmod(0o666)
        inode = (tmp_path / "there").stat().st_ino
        generate(release, bundle, "--tokens", tmp_path / "there", user=NOBODY)
        said = generate(release, bundle, "--tokens", tmp_path / "new", status=OTHER_ERROR, user=NOBODY)
    assert "cannot write" in said
    assert "Permission denied" in said
    assert (tmp_path / "there").read_bytes() == expected
    assert (tmp_path / "there").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--tokens", "missing/x.npy"),
            "missing/x.npy: No such file or directory (make the folder missing",
        ),
        (("--tokens", "folder"), "cannot write folder: it is a folder"),
        (("--tokens", "folder/"), "cannot write folder/: it is a folder"),
        (("--tokens", "file/x.npy"), "cannot write file/x.npy: Not a directory"),
        (("--tokens", "circle"), "cannot write circle: Too many levels of symbolic links"),
        (("--tokens", "a", "--npz", "./a"), "--npz and --tokens both write a: name two files"),
        (("--output", "alias", "--timings", "a", "--tokens", "b"), "--output and --timings both write a: name two"),
    ],
)
def test_outputs_are_tried_before_the_work(
    release: Any, bundle: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("before")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "alias").symlink_to("a")
    before = sorted(tmp_path.iterdir())
    # so many samples that any work would take minutes
    said = generate(release, bundle, "--samples", 100000, *words, status=OTHER_ERROR, cwd=tmp_path, timeout=60)
    assert message in said
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "before"


def test_a_run_that_is_interrupted_leaves_the_file_of_before(release: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("before")
    command = [release.program("arforge-run"), bundle, "--class", 1, "--samples", 100000, "--batch", 1]
    words = [str(word) for word in (*command, "--npz", tmp_path / "x.npz")]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read(8)  # its progress
        process.kill()
    assert (tmp_path / "x.npz").read_text() == "before"


def test_images_come_to_the_array_file_as_they_are_made(release: Any, bundle: Path, tmp_path: Path) -> None:
    """In batches of their own, and to a pipe, which cannot go back."""
    words = ("--samples", 5, "--output", tmp_path / "x.ppm", "--npz")
    generate(release, bundle, *words, tmp_path / "whole.npz")
    os.mkfifo(tmp_path / "pipe")
    with (
        (tmp_path / "piped.npz").open("wb") as piped_file,
        subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=piped_file),
    ):
        generate(release, bundle, *words, tmp_path / "pipe", "--batch", 2)
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "piped.npz") as piped:
        assert whole["arr_0"].shape == (5, 16, 16, 3)
        np.testing.assert_array_equal(whole["arr_0"], piped["arr_0"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P6\n16 12\n65535\n" + bytes(16 * 12 * 6), "has values up to 65535, not 255"),
        (b"P6\n16 12\n31\n" + bytes(16 * 12 * 3), "has values up to 31, not 255"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG"),
        (b"\xff\xd8\xff\xe0", "is a JPEG"),
        (b"P3\n16 12\n255\n", "is written in digits"),
        (b"P6\n16 12\n255\n" + bytes(16 * 12 * 3 - 1), "has 575 bytes of pixels, its header asks for 576"),
        (b"P6\n65536 65536\n255\n", "has 0 bytes of pixels, its header asks for 12884901888"),
        (b"P6\n16 x\n255\n", "has no sound header"),
        (b"", "is something else"),
        (None, "No such file or directory"),
    ],
)
def test_images_to_keep_are_8_bit_or_refused(
    release: Any, arpg_bundle: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "x.ppm").write_bytes(content)
    (tmp_path / "x.pgm").write_bytes(b"P5\n16 12\n255\n" + bytes(16 * 12))
    words = ("--class", 1, "--keep", tmp_path / "x.ppm", "--mask", tmp_path / "x.pgm", "--tokens", tmp_path / "x.npy")
    command = [str(word) for word in (release.program("arforge-run"), arpg_bundle, *words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == OTHER_ERROR
    assert f"{tmp_path / 'x.ppm'}" in done.stderr
    assert message in done.stderr
