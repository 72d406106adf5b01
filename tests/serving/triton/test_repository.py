"""`arforge triton`: what it writes, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from arforge.cli import main
from arforge.runner import Runner, open_bundle
from arforge.serving.triton.repository import Model, config_text, quoted


def triton(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["triton", *map(str, arguments)])


def written(*arguments: object) -> str:
    result = triton(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = triton(*arguments)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    return result.output


def test_a_repository_holds_all_that_a_model_needs(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    text = written(bundle, "--output", repository, "--threads", 1)
    assert text == f"wrote {repository / 'tiny'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.name for path in repository.iterdir()] == ["tiny"]
    assert sorted(path.name for path in (repository / "tiny/1").iterdir()) == ["model.bundle", "model.py"]
    with Runner.open(repository / "tiny/1/model.bundle", threads=1) as opened:
        opened.bundle.check_hashes()
        assert opened.generate([1]).images is not None


def test_previews_are_a_second_model_of_the_same_files(bundle: Path, tmp_path: Path) -> None:
    written(bundle, "--output", tmp_path / "models", "--name", "seven", "--previews")
    first, second = tmp_path / "models/seven", tmp_path / "models/seven_stream"
    weights = "1/model.bundle/graphs/fp32/weights/model.weights"
    assert (first / weights).samefile(second / weights)
    assert not (first / weights).samefile(bundle / weights.removeprefix("1/model.bundle/"))
    assert "decoupled: true" in (second / "config.pbtxt").read_text()
    assert "decoupled" not in (first / "config.pbtxt").read_text()
    written(bundle, "--output", tmp_path / "models", "--name", "eight")  # beside them
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["eight", "seven", "seven_stream"]


def test_a_bundle_may_stay_where_it_is(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    written(bundle.name, "--output", tmp_path / "models", "--by-path", "--environment", "here")
    assert [path.name for path in (tmp_path / "models/tiny/1").iterdir()] == ["model.py"]
    text = (tmp_path / "models/tiny/config.pbtxt").read_text()
    assert f'key: "bundle" value: {{ string_value: "{bundle.resolve()}" }}' in text
    assert f'key: "EXECUTION_ENV_PATH" value: {{ string_value: "{bundle.parent / "here"}" }}' in text


def test_the_configuration_says_what_was_asked_for(bundle: Path, ids_bundle: Path) -> None:
    opened = open_bundle(bundle)
    text = config_text(opened, Model("m", "tensorrt", "fp16", 2, max_batch_size=5, instances=3, waiting=7, timeout=1.5))
    for line in (
        "max_batch_size: 5",
        "instance_group [ { kind: KIND_GPU count: 3 } ]",
        "    default_timeout_microseconds: 1500000",
        "    max_queue_size: 7",
        'input [ { name: "class" data_type: TYPE_INT64 dims: [ 1 ] } ]',
        'output [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]',
        'parameters { key: "precision" value: { string_value: "fp16" } }',
        'parameters { key: "threads" value: { string_value: "2" } }',
    ):
        assert f"\n{line}\n" in text
    text = config_text(open_bundle(ids_bundle), Model("m", "onnxruntime", "fp32", prompts="uint8"))
    assert re.search(r'"prompt" data_type: TYPE_UINT8 dims: \[ -1 \] optional: true allow_ragged_batch: true', text)
    assert quoted('a"b\\c\nd') == r'"a\"b\\c\nd"'


def test_what_cannot_be_written_is_refused_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    assert "cannot be a model's name" in refused(bundle, "--output", repository, "--name", "../x")
    assert "no onnxruntime int8 engine" in refused(bundle, "--output", repository, "--precision", "int8")
    assert "no tensorrt fp16 engine" in refused(bundle, "--output", repository, "--target", "tensorrt")
    assert "manifest.json" in refused(tmp_path, "--output", repository)
    assert not list(tmp_path.iterdir())
    (repository / "tiny_stream").mkdir(parents=True)
    assert "tiny_stream is there already" in refused(bundle, "--output", repository, "--previews")
    assert [path.name for path in repository.iterdir()] == ["tiny_stream"]
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(bundle, "--output", tmp_path / "file")
    assert "cannot write" in refused(bundle, "--output", tmp_path / "file/models")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "models"]


def test_an_engine_that_is_missing_is_built(exported_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(exported_bundle, tmp_path / "new.bundle")
    text = written(tmp_path / "new.bundle", "--output", tmp_path / "models")
    assert "building it" in text
    assert (tmp_path / "models/new/1/model.bundle/engines").is_dir()
