from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from arforge.runner import BundleError
from arforge.runner.bundle.lock import UNSUPPORTED, FolderLock
from arforge.runner.bundle.writer import changing, staged

STEP = "graphs/fp32/step-onnxruntime-0123456789ab.onnx"  # a name that builds give


def no_locks(number: int) -> object:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_a_lock_keeps_others_off_until_it_is_closed(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        assert lock.held
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
    with FolderLock(tmp_path) as lock:
        assert lock.held


def test_a_lock_knows_whether_its_folder_has_been_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with FolderLock(folder) as lock:
        assert lock.is_on(folder)
        folder.rename(tmp_path / "moved")
        assert not lock.is_on(folder)
        folder.mkdir()
        assert not lock.is_on(folder)


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_file_systems_without_locks_go_without(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """And remove nothing that another writer may be at."""
    monkeypatch.setattr(fcntl, "flock", no_locks(number))
    left = bundle_copy.with_name(".new.bundle.0123456789ab.partial")
    left.mkdir()
    (bundle_copy / STEP).touch()
    with changing(bundle_copy), staged(bundle_copy.with_name("new.bundle"), overwrite=False) as stage:
        (stage / "manifest.json").write_text("{}")
    assert (bundle_copy.with_name("new.bundle") / "manifest.json").is_file()
    assert left.is_dir()
    assert (bundle_copy / STEP).is_file()


def test_what_may_lie_about_is_named_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOLCK))
    (tmp_path / ".new.bundle.0123456789ab.partial").mkdir()
    with (
        pytest.raises(BundleError, match=r"No space left.*Beside it lies \.new\.bundle\.0123456789ab\.partial: remove"),
        staged(tmp_path / "new.bundle", overwrite=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_other_errors_of_locks_are_errors(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.EIO))
    with pytest.raises(BundleError, match=r"cannot read .*copy.bundle: Input/output error"), changing(bundle_copy):
        pass
