from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arforge.runner import BundleError, open_bundle
from arforge.runner.bundle import BuiltEngine, File, sha256_of
from arforge.runner.bundle.lock import FolderLock
from arforge.runner.bundle.writer import (
    add_engine,
    changing,
    exchange,
    file_facts,
    replace_file,
    staged,
    write_hashed,
    write_json,
)

ENGINE = BuiltEngine("onnxruntime", "int8", "cpu", "engines/new")


def identity(number: int) -> dict[str, object]:
    kind = dict(zip(("target", "precision", "device"), ENGINE.key, strict=True))
    graph = {"graph": "graphs/int8/step.onnx", "graph_sha256": "0" * 64}
    return {**kind, **graph, "library": "onnxruntime 1", "machine": f"machine {number}", "widths": None}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(stage: Path) -> None:
    (stage / "manifest.json").write_text("{}")


def write_and_fail(target: Path, error: BaseException) -> None:
    with staged(target, overwrite=True) as stage:
        fill(stage)
        raise error


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_new_bundle_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new.bundle"
    with staged(target, overwrite=False) as stage:
        fill(stage)
        (stage / "graphs").mkdir()
        assert not target.exists()
        assert stage.parent == target.parent
    assert contents(target) == {"manifest.json": b"{}"}
    assert names(target.parent) == ["new.bundle"]


def test_an_old_bundle_is_replaced_whole(bundle_copy: Path) -> None:
    with staged(bundle_copy, overwrite=True) as stage:
        fill(stage)
    assert contents(bundle_copy) == {"manifest.json": b"{}"}
    assert names(bundle_copy.parent) == ["copy.bundle"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (RuntimeError("stop"), RuntimeError, "^stop$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            BundleError,
            "cannot write .*No space left on device.*as it",
        ),
        (OSError(errno.EIO, "I/O error", "weights"), BundleError, "cannot write .*I/O error.*left as it was"),
    ],
    ids=["error", "interrupt", "full disk", "named file"],
)
@pytest.mark.parametrize("old", [True, False])
def test_an_error_leaves_the_target_as_it_was(
    bundle_copy: Path, error: BaseException, raised: type[BaseException], message: str, old: bool
) -> None:
    target = bundle_copy if old else bundle_copy.with_name("new.bundle")
    before = contents(bundle_copy)
    with pytest.raises(raised, match=message):
        write_and_fail(target, error)
    assert contents(bundle_copy) == before
    assert names(bundle_copy.parent) == ["copy.bundle"]


def test_a_disk_that_fills_while_the_manifest_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: full_disk())
    with pytest.raises(BundleError, match="No space left"), staged(tmp_path / "new.bundle", overwrite=False) as stage:
        write_json(stage / "manifest.json", {"format": "x"})
    assert names(tmp_path) == []


def test_an_existing_bundle_needs_overwrite(bundle_copy: Path) -> None:
    before = contents(bundle_copy)
    with (
        pytest.raises(BundleError, match=r"copy.bundle exists: .*pass --overwrite"),
        staged(bundle_copy, overwrite=False),
    ):
        pass
    assert contents(bundle_copy) == before


@pytest.mark.parametrize("kind", ["file", "directory", "link", "broken link"])
def test_what_is_no_bundle_is_never_replaced(bundle_copy: Path, kind: str) -> None:
    target = bundle_copy.with_name("precious")
    if kind == "file":
        target.write_text("thesis")
    elif kind == "directory":
        target.mkdir()
        (target / "thesis").write_text("thesis")
    else:
        target.symlink_to(bundle_copy if kind == "link" else "nowhere", target_is_directory=True)
    with (
        pytest.raises(BundleError, match="precious exists and is not a bundle: choose another"),
        staged(target, overwrite=True),
    ):
        pass
    assert target.is_symlink() == ("link" in kind)
    assert names(bundle_copy.parent) == ["copy.bundle", "precious"]


def test_leavings_of_dead_writers_are_swept_and_others_kept(tmp_path: Path, dead_process: int) -> None:
    stale, live, other = (
        tmp_path / name
        for name in (
            f".new.bundle.{dead_process}.partial",
            f".new.bundle.{os.getppid()}.partial",
            f".other.bundle.{dead_process}.partial",
        )
    )
    for path in (stale, live, other):
        path.mkdir()
        (path / "weights").write_bytes(b"x" * 100)
    with FolderLock(live), staged(tmp_path / "new.bundle", overwrite=False) as stage:
        fill(stage)
    assert not stale.exists()
    assert (live / "weights").is_file()
    assert (other / "weights").is_file()


def test_leavings_of_a_dead_writer_with_this_process_id_do_not_stop_an_export(tmp_path: Path) -> None:
    """Process ids repeat, in containers nearly always."""
    stale = tmp_path / f".new.bundle.{os.getpid()}.partial"
    stale.mkdir()
    (stale / "weights").write_bytes(b"x" * 100)
    with staged(tmp_path / "new.bundle", overwrite=False) as stage:
        fill(stage)
    assert contents(tmp_path / "new.bundle") == {"manifest.json": b"{}"}


def test_two_writers_of_one_process_id_keep_to_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers, whose processes are number 1 both, and on two hosts with one disk."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    target = tmp_path / "new.bundle"
    with staged(target, overwrite=False) as first:
        (first / "first").touch()
        with pytest.raises(RuntimeError, match="stop"), staged(target, overwrite=False) as second:
            (second / "second").touch()
            assert names(second) == ["second"]
            raise RuntimeError("stop")
        assert names(first) == ["first"]
    assert names(target) == ["first"]
    assert names(tmp_path) == ["new.bundle"]


def test_the_slower_of_two_writers_says_that_the_target_has_appeared(tmp_path: Path) -> None:
    target = tmp_path / "new.bundle"
    with (
        pytest.raises(BundleError, match="new.bundle has appeared meanwhile: choose another output"),
        staged(target, overwrite=False) as slow,
    ):
        with staged(target, overwrite=False) as quick:
            (quick / "quick").touch()
        assert slow.is_dir()
    assert names(target) == ["quick"]


def test_a_bundle_that_is_being_changed_is_not_replaced(bundle_copy: Path) -> None:
    before = contents(bundle_copy)
    with (
        changing(bundle_copy),
        pytest.raises(BundleError, match=r"another process is changing .*copy.bundle: wait until it is done"),
        staged(bundle_copy, overwrite=True) as stage,
    ):
        fill(stage)
    assert contents(bundle_copy) == before
    assert names(bundle_copy.parent) == ["copy.bundle"]


def test_a_bundle_with_files_of_others_is_not_replaced(bundle_copy: Path) -> None:
    (bundle_copy / "notes.txt").write_text("mine")
    with (
        pytest.raises(BundleError, match=r"copy.bundle holds files that arforge did not write: notes.txt. Move them"),
        staged(bundle_copy, overwrite=True),
    ):
        pass
    assert (bundle_copy / "notes.txt").read_text() == "mine"
    open_bundle(bundle_copy).check_hashes()


def test_a_replaced_bundle_keeps_the_mode_of_its_folder(bundle_copy: Path) -> None:
    bundle_copy.chmod(0o750)
    with staged(bundle_copy, overwrite=True) as stage:
        fill(stage)
    assert bundle_copy.stat().st_mode & 0o777 == 0o750


def test_a_path_that_no_runtime_can_open_is_refused(tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"\xff.bundle")
    message = "is not UTF-8, which runtimes need: rename it"
    with pytest.raises(BundleError, match=message), staged(target, overwrite=False):
        pass
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "new.bundle"
    with pytest.raises(BundleError, match="cannot write .*new.bundle"), staged(target, overwrite=False):
        pass


def test_exchange_swaps_where_the_system_cannot_do_it_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    exchange(tmp_path / "new", tmp_path / "old")
    assert contents(tmp_path / "old") == {"name": b"new"}


def test_what_a_cut_between_two_renames_leaves_is_put_back(bundle_copy: Path) -> None:
    before = contents(bundle_copy)
    bundle_copy.rename(bundle_copy.with_name(".copy.bundle.0123456789ab.replaced"))
    with pytest.raises(RuntimeError, match="stop"), staged(bundle_copy, overwrite=False):
        raise RuntimeError("stop")
    assert contents(bundle_copy) == before
    assert names(bundle_copy.parent) == ["copy.bundle"]


def test_files_of_others_stay_and_those_of_a_cut_build_go(bundle_copy: Path) -> None:
    mine = [bundle_copy / "engines/mine/model.plan", bundle_copy / "graphs/fp32/decoder.quantized.onnx"]
    cut = [
        bundle_copy / "engines/tensorrt-rtx-fp16-rtx/step-0123456789ab.engine",
        bundle_copy / "graphs/fp32/step-tensorrt-0123456789ab.onnx",
        bundle_copy / "graphs/fp32/.arforge-0123456789abcdef.partial",
        bundle_copy / ".arforge-0123456789abcdef.partial",
    ]
    for path in (*mine, *cut):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (bundle_copy / "empty").mkdir()
    with changing(bundle_copy):
        assert not any(path.exists() for path in cut)
    assert all(path.exists() for path in mine)
    assert (bundle_copy / "empty").is_dir()
    assert not cut[0].parent.exists()


def test_a_file_that_others_share_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    path = write_hashed(tmp_path, "step", ".engine", b"content")
    shared = tmp_path / "copy"
    os.link(path, shared)
    before = shared.stat().st_ino
    assert write_hashed(tmp_path, "step", ".engine", b"content") == path
    replace_file(shared, b"other")
    assert (path.read_bytes(), shared.read_bytes()) == (b"content", b"other")
    assert path.stat().st_ino != before
    assert names(tmp_path) == ["copy", path.name]


KILLED = """
import sys
from pathlib import Path
from arforge.runner.bundle.writer import staged
with staged(Path(sys.argv[1]), overwrite=True) as stage:
    (stage / "manifest.json").write_text("{}")
    print("half-way", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("old", [True, False])
def test_a_killed_writer_leaves_the_target_as_it_was_and_the_next_one_works(bundle_copy: Path, old: bool) -> None:
    target = bundle_copy if old else bundle_copy.with_name("new.bundle")
    before = contents(bundle_copy)
    command = [sys.executable, "-c", KILLED, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half-way\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert target.exists() == old
    assert contents(bundle_copy) == before
    assert len(names(target.parent)) == 2  # the old bundle, and what the killed writer left
    with staged(target, overwrite=True) as stage:
        fill(stage)
    assert contents(target) == {"manifest.json": b"{}"}
    assert not list(target.parent.glob("*.partial"))
    assert not list(target.parent.glob(".*.partial"))


def test_file_facts_list_everything_but_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"abc")
    (tmp_path / "manifest.json").write_text("{}")
    assert file_facts(tmp_path) == {"a/b/c": File(3, sha256_of(tmp_path / "a/b/c"))}
    assert sha256_of(tmp_path / "a/b/c").startswith("ba7816bf8f01cfea")


def test_an_added_engine_is_listed_hashed_and_replaces_its_like(bundle_copy: Path) -> None:
    for number in (1, 2):
        add_engine(open_bundle(bundle_copy), ENGINE, identity(number))
    opened = open_bundle(bundle_copy)
    opened.check_hashes()
    assert [engine.precision for engine in opened.engines] == ["fp32", "int8"]
    assert opened.engine("onnxruntime", "int8") == identity(2)
    assert not list(bundle_copy.rglob("*.partial"))


def test_a_full_disk_while_an_engine_is_added_leaves_the_bundle_usable(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, before = open_bundle(bundle_copy), contents(bundle_copy)
    monkeypatch.setattr(os, "fsync", lambda _: full_disk())
    with pytest.raises(BundleError, match="cannot write .*No space left on device"):
        add_engine(opened, ENGINE, identity(1))
    after = contents(bundle_copy)
    assert after["manifest.json"] == before["manifest.json"]
    assert not [name for name in after if name.endswith(".partial")]
    open_bundle(bundle_copy).check_hashes()


def test_a_full_disk_while_a_rebuilt_engine_is_written_leaves_the_bundle_usable(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(open_bundle(bundle_copy), ENGINE, identity(1))
    opened = open_bundle(bundle_copy)
    monkeypatch.setattr(os, "fsync", lambda _: full_disk())
    with pytest.raises(BundleError, match="cannot write"):
        add_engine(opened, ENGINE, identity(1234567))
    assert open_bundle(bundle_copy).engine("onnxruntime", "int8") == identity(1)


def test_a_manifest_is_never_written_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "manifest.json", {"guidance": float("nan")})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {}
    assert names(tmp_path) == ["manifest.json"]
