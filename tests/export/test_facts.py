"""Names of classes, read from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from arforge.export.facts import check_labels, read_labels
from arforge.runner.bundle import FeaturesCondition
from arforge.runner.errors import CheckpointError


@pytest.mark.parametrize("text", ["boot\nbag \n", '["boot", "bag"]', '\n ["boot",\n"bag"]'])
def test_names_are_lines_or_a_json_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_text(text.removeprefix("\n"))
    assert read_labels(tmp_path / "labels") == ("boot", "bag")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"boot\n\nbag", "must hold a name of up to 200 characters for each class"),
        (b"x" * 201, "must hold a name"),
        (b'["boot", 3]', "must hold a name"),
        (b'["boot"', "cannot read the names of classes"),
        (b"\xff", "cannot read the names of classes"),
        (None, "cannot read the names of classes"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "labels").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_labels(tmp_path / "labels")


def test_a_model_without_classes_takes_no_names() -> None:
    check_labels(None, FeaturesCondition(120, 2048, "clean"))
    with pytest.raises(CheckpointError, match="leave --labels out"):
        check_labels(("boot",), FeaturesCondition(120, 2048, "clean"))
