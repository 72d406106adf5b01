"""What `arforge export` makes of its arguments; the exports themselves are tested beside the exporter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tiny import CONFIG, PAR_CONFIG, random_weights
from torch import Tensor

from arforge.cli import main
from arforge.export import exporter
from arforge.export.families import par


def succeed(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[exporter.ExportJob]:
    """The jobs that commands of the test hand to the exporter, which does nothing."""
    taken: list[exporter.ExportJob] = []
    monkeypatch.setattr(exporter, "export_bundle", lambda job, report: taken.append(job))
    return taken


OWN = ("--n-head", 4, "--grid", "8x8")


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_alone_or_after_its_family(checkpoint: Path, jobs: list[exporter.ExportJob], named: bool) -> None:
    first = ("llamagen", "--checkpoint", checkpoint) if named else (checkpoint,)
    said = succeed("export", *first, *OWN)
    (job,) = jobs
    assert (job.family.name, job.checkpoint) == ("llamagen", checkpoint)
    assert job.config == replace(CONFIG, multiple_of=64)  # which makes the same widths
    assert (job.output, job.image_tokenizer) == (Path("tiny.bundle"), None)
    assert said == "wrote tiny.bundle; next: arforge build tiny.bundle --target onnxruntime\n"


def test_a_folder_gives_its_name_to_the_bundle(
    tmp_path: Path, weights: dict[str, Tensor], jobs: list[exporter.ExportJob]
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    save_file(weights, folder / "model-00001-of-00001.safetensors")
    assert "arforge build 'my model.bundle'" in succeed("export", folder, *OWN)
    succeed("export", folder / "model-00001-of-00001.safetensors", *OWN, "--output", tmp_path / "x.bundle")
    succeed("export", folder / "model-00001-of-00001.safetensors", *OWN)
    assert [job.output for job in jobs] == [
        Path("my model.bundle"),
        tmp_path / "x.bundle",
        Path("model-00001-of-00001.bundle"),
    ]


def test_settings_are_the_familys_where_none_are_given(
    tmp_path: Path, jobs: list[exporter.ExportJob], tokenizer_checkpoint: Path
) -> None:
    torch.save({"model": random_weights(PAR_CONFIG, seed=4, family=par.FAMILY)}, tmp_path / "x.pt")
    dimensions = ("--n-head", 2, "--grid", "8x8")
    succeed("export", tmp_path / "x.pt", *dimensions)
    succeed(
        *(
            "export",
            tmp_path / "x.pt",
            *dimensions,
            "--regions",
            4,
            "--guidance",
            3,
            "--top-k",
            7,
            "--schedule",
            "par:4",
        ),
        *("--tokenizer", tokenizer_checkpoint, "--image-tokenizer-weights", "model", "--weights", "model"),
        *("--precision", "int4", "--block-size", "32"),
    )
    usual, chosen = jobs
    assert (usual.config.dim, usual.sampler, usual.schedules) == (40, par.FAMILY.sampler(PAR_CONFIG), ())
    assert (usual.precision, usual.block, chosen.precision, chosen.block) == (None, None, "int4", 32)
    assert chosen.sampler is not None
    assert (chosen.sampler.guidance, chosen.sampler.top_k, chosen.sampler.top_p) == (3.0, 7, 1.0)
    assert (chosen.image_tokenizer, chosen.image_tokenizer_weights) == (tokenizer_checkpoint, "model")
    assert (chosen.weights, chosen.schedules) == ("model", ("par:4",))


USAGE: list[tuple[tuple[Any, ...], str]] = [
    (("llamagen",), "which llamagen checkpoint? Name it with --checkpoint"),
    (("other", "--checkpoint", "c.pt"), "is no family (llamagen, llamagen-t2i, par, arpg, lumina, emu3, janus)"),
    (("none.pt",), "no checkpoint at none.pt"),
    (("c.pt", "--variant", "B", "--config", "c.json"), "one of --variant and --config"),
    (("c.pt", "--config", "c.json", "--grid", "8x8"), "go without --config, which holds its own"),
    (("c.pt", "--config", "c.json", "--regions", "4"), "go without --config, which holds its own"),
    (("c.pt", "--variant", "B", "--n-head", "4"), "--n-head goes without --variant"),
    (("c.pt", "--regions", "5"), "'5' is not one of '4', '16'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_arguments_that_contradict_each_other_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    assert message in fail("export", *arguments)


def test_what_the_tensors_do_not_tell_is_asked_for(checkpoint: Path, jobs: list[exporter.ExportJob]) -> None:
    assert "--n-head" in fail("export", checkpoint)
    assert "give it by --grid" in fail("export", checkpoint, "--n-head", 4)
    assert "--regions goes with the par family, this is llamagen" in fail("export", checkpoint, *OWN, "--regions", 4)
    unknown = fail("export", checkpoint, "--variant", "7B", "--grid", "8x8")
    assert "has no variant 7B: use one of B, L, XL, XXL, 3B" in unknown
    assert "top-p" in fail("export", checkpoint, *OWN, "--top-p", 2)
    assert jobs == []


def test_help_names_the_options_of_families() -> None:
    text = succeed("export", "--help")
    assert "--regions [4|16]" in text
    assert "Of par." in " ".join(text.split())


def test_a_checkpoint_named_as_a_family_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, jobs: list[exporter.ExportJob]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llamagen").symlink_to(checkpoint)
    succeed("export", "llamagen", *OWN)
    assert jobs[0].checkpoint == Path("llamagen")
