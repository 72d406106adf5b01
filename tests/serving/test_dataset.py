"""`arforge generate`: every row once, whatever happens, and the same whenever."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from arforge.cli import main
from arforge.runner import Runner
from arforge.serving.table import read_table


def generate(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


WEB = ("--format", "webdataset", "--schedule", "zipar:2", "--quiet")


def test_rows_of_webdataset_are_the_runners(bundle: Path, runner: Runner, tmp_path: Path) -> None:
    text = generate(
        bundle, "--output", tmp_path / "web", "--images", 7, "--rows", 3, "--class", "1,4", "--first", 5,
        "--guidance", 2, "--tokens", *WEB,
    )  # fmt: skip
    assert text == f"7 rows in 3 files of {tmp_path / 'web'}, 0 of which were there\n"
    files = [f"images-{number:06d}.tar" for number in range(3)]
    assert sorted(contents(tmp_path / "web")) == ["generation.json", *files]
    found: dict[str, bytes] = {}
    for name in files:
        found |= members(tmp_path / "web" / name)
    classes = [1, 4, 1, 4, 1, 4, 1]
    expected = runner.generate(classes, seeds=range(5, 12), schedule="zipar:2", guidance=2.0)
    assert len(found) == 4 * 7
    assert expected.images is not None
    for place, label in enumerate(classes):
        key = f"{5 + place:012d}"
        np.testing.assert_array_equal(pixels_of(found[f"{key}.png"]), expected.images[place])
        np.testing.assert_array_equal(np.load(io.BytesIO(found[f"{key}.npy"])), expected.tokens[place])
        assert found[f"{key}.cls"] == str(label).encode()
        assert json.loads(found[f"{key}.json"]) == {"id": 5 + place, "class": label}


def test_rows_of_parquet_are_the_runners(words_bundle: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "table.csv").write_text('id,prompt\n1,a red heart\n2,"two, \u00e4pples"\n3,a cat\n', "utf-8")
    options = ("--table", tmp_path / "table.csv", "--rows", 2, "--schedule", "zipar:4", "--quiet")
    assert "3 rows in 2 files" in generate(words_bundle, "--output", tmp_path / "rows", *options)
    tables = [parquet.read_table(tmp_path / f"rows/images-00000{number}.parquet") for number in range(2)]
    rows = [row for table in tables for row in table.to_pylist()]
    prompts = ["a red heart", "two, \u00e4pples", "a cat"]
    assert [(row["id"], row["prompt"]) for row in rows] == list(enumerate(prompts))
    with Runner.open(words_bundle, threads=1) as own:
        expected = own.generate(prompts=prompts, seeds=range(3), schedule="zipar:4").images
    assert expected is not None
    for row, image in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(pixels_of(row["image"]["bytes"]), image)
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}


def test_a_run_that_is_killed_goes_on_without_a_row_lost_or_doubled(bundle: Path, tmp_path: Path) -> None:
    options = ("--images", 200, "--rows", 10, "--class", "0-4", "--batch", 8, *WEB)
    folder = tmp_path / "cut"
    command = [sys.executable, "-m", "arforge", "generate", bundle, "--output", folder, "--threads", 1, *options]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    while len(list(folder.glob("images-*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(folder.glob("images-*.tar")))
    assert 3 <= there < 20
    (folder / ".arforge-0123456789abcdef.partial").write_bytes(b"half a file")  # as a cut within a file leaves
    before = contents(folder)
    assert f"200 rows in 20 files of {folder}, {there} of which were there" in generate(
        bundle, "--output", folder, "--threads", 1, *options
    )
    after = contents(folder)
    assert len(after) == 21
    assert all(after[name] == content for name, content in before.items() if name in after)
    keys = [name for path in sorted(folder.glob("*.tar")) for name in members(path) if name.endswith(".png")]
    assert keys == [f"{number:012d}.png" for number in range(200)]
    generate(bundle, "--output", tmp_path / "whole", "--threads", 1, *options)
    assert contents(tmp_path / "whole") == after  # byte for byte


def test_a_folder_is_gone_on_with_by_the_same_command_only(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    options = ("--images", 4, "--rows", 2, "--class", "1", *WEB)
    generate(bundle, "--output", folder, *options)
    kept = contents(folder)
    assert "4 rows in 2 files" in generate(bundle, "--output", folder, *options, "--batch", 1)
    for other, named in (
        (("--images", 5), "images"),
        (("--guidance", 3), "settings"),
        (("--class", 2), "subjects"),
        (("--tokens",), "tokens"),
        (("--first", 1), "first"),
    ):
        assert f"was begun with another {named}: go on with that" in refused(
            bundle, "--output", folder, *options, *other
        )
    assert contents(folder) == kept


def test_a_full_disk_or_a_busy_folder_is_named(bundle: Path, tmp_path: Path) -> None:
    from arforge.runner.bundle.lock import FolderLock

    options = ("--images", 4, "--class", "1", *WEB)
    (tmp_path / "busy").mkdir()
    with FolderLock(tmp_path / "busy"):
        assert "another process is filling" in refused(bundle, "--output", tmp_path / "busy", *options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("")
    assert "holds other files" in refused(bundle, "--output", tmp_path / "other", *options)
    assert "cannot write" in refused(bundle, "--output", tmp_path / "other/mine.txt", *options)
    assert list(contents(tmp_path / "other")) == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to draw: say what with --table or --class"),
        (("--class", "1", "--table", "x.csv"), "say what to draw by --table, or by other options"),
        (("--class", "99999"), "class 99999 is out of range"),
        (("--class", "1", "--schedule", "zipar:0"), "zipar"),
        (("--class", "1", "--guidance", "-1"), "guidance -1.0 is out of range"),
        (("--prompt", "a cat"), "model does not take prompts"),
        (("--class", "1", "--workers", "2"), "--workers and --gpus go with --ray"),
        (("--class", "1", "--precision", "int8"), "no onnxruntime int8 engine"),
        (("--class", "1", "--first", 2**62, "--images", 2**62 + 1), "cannot be counted"),
        (("--class", "1", "--images", 10**9 + 1), "more than 1000000 files: put more rows into one"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_work(
    bundle: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    assert message in refused(bundle, "--output", tmp_path / "web", *WEB[:2], *options)
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_pictures_gives_tokens(par_bundle: Path, tmp_path: Path) -> None:
    options = ("--images", 2, "--class", "1", "--format", "webdataset", "--quiet")
    assert "gives tokens only" in refused(par_bundle, "--output", tmp_path / "web", *options)
    generate(par_bundle, "--output", tmp_path / "web", *options, "--tokens")
    assert sorted(members(tmp_path / "web/images-000000.tar"))[:3] == [
        f"{0:012d}.cls", f"{0:012d}.json", f"{0:012d}.npy",
    ]  # fmt: skip


def test_tables_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    def message(text: str, name: str = "t.csv") -> str:
        (tmp_path / name).write_text(text)
        with pytest.raises(Exception, match=name) as caught:
            read_table(tmp_path / name)
        return str(caught.value)

    (tmp_path / "good.csv").write_text("class\n7\ngoldfish\n")
    assert read_table(tmp_path / "good.csv").values == (7, "goldfish")
    assert "name one of them class, or prompt" in message("label\n7\n")
    assert "name one of them class, or prompt" in message("class,prompt\n7,a\n")
    assert "has no rows" in message("class\n")
    assert "row 2: the prompt is empty" in message("id,prompt\n1,a\n2,\n")
    assert "row 1: a prompt must be text" in message("id,prompt\n1\n")
    assert "row 1: '' is no class" in message('id,class\n1,""\n')
    assert "is no table: use a .csv or a .parquet file" in message("x", "t.txt")
    assert "cannot read" in message('class\n"7\n')
    with pytest.raises(Exception, match="cannot read .*none.csv"):
        read_table(tmp_path / "none.csv")
    pytest.importorskip("pyarrow")
    assert "cannot read" in message("no parquet", "t.parquet")
