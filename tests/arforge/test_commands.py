"""The command line, called as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from arforge.cli import COMMANDS, main


def arforge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = arforge(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    result = arforge(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_names_every_option_and_ends_well(command: str) -> None:
    text = succeed(command, "--help")
    assert text.startswith("Usage:")
    assert "Options:" in text


def test_unknown_command_is_refused() -> None:
    assert "No such command 'paint'" in fail("paint")


def test_run_writes_png_npz_and_tokens_that_agree(bundle: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / f"images.{name}" for name in ("png", "npz", "npy")}
    succeed(
        *("run", bundle, "--schedule", "zipar:4", "--class", "0-2", "--seed", "7", "--columns", "3"),
        *("--output", outputs["png"], "--npz", outputs["npz"], "--tokens", outputs["npy"], "--quiet"),
    )
    tokens, pixels = np.load(outputs["npy"]), np.load(outputs["npz"])["arr_0"]
    assert (tokens.dtype, tokens.shape) == (np.int64, (3, 64))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 16, 16, 3))
    page = np.asarray(Image.open(outputs["png"]))
    assert page.shape == (16, 3 * 16 + 2 * 2, 3)
    assert (page[:, 18:34] == pixels[1]).all()


def test_run_takes_seeds_one_by_one_or_counting_up(bundle: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    succeed("run", bundle, "--class", "1,2,3", "--seed", 5, "--tokens", first)
    succeed("run", bundle, *("--class", 3, "--class", 1, "--seed", 7, "--seed", 5), "--tokens", second)
    assert (np.load(second) == np.load(first)[[2, 0]]).all()


def test_run_samples_go_round_the_classes(bundle: Path, tmp_path: Path) -> None:
    round_trip, listed = tmp_path / "a.npy", tmp_path / "b.npy"
    succeed("run", bundle, "--class", "1,2", "--samples", 5, "--tokens", round_trip)
    succeed("run", bundle, "--class", "1,2,1,2,1", "--tokens", listed)
    assert (np.load(round_trip) == np.load(listed)).all()


def test_greedy_ignores_the_seed(bundle: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        succeed("run", bundle, "--class", 4, "--greedy", "--seed", seed, "--tokens", tmp_path / f"{seed}.npy")
    assert (np.load(tmp_path / "1.npy") == np.load(tmp_path / "2.npy")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", 10, "--tokens", "t.npy"), "class 10 is out of range: use 0 to 9"),
        (("--class", "x", "--tokens", "t.npy"), "class 'x': the bundle has no names for its classes; use numbers"),
        (("--class", "5-1", "--tokens", "t.npy"), "not a rising range"),
        (("--class", 1), "nothing to write: name --output, --npz or --tokens"),
        (("--class", 1, "--schedule", "zipar:9", "--tokens", "t.npy"), "window 9 does not fit a grid of 8x8"),
        (("--class", 1, "--schedule", "zipar:4,win=2", "--tokens", "t.npy"), "unknown option 'win=2'"),
        (("--class", 1, "--schedule", "nnp", "--tokens", "t.npy"), "did you mean 'ntp'?"),
        (("--class", 1, "--guidance", 0.5, "--tokens", "t.npy"), "guidance 0.5 is out of range"),
        (("--class", 1, "--top-p", 0, "--tokens", "t.npy"), "top-p 0.0 is out of range"),
        (("--class", "1,2,3", "--seed", "1,2", "--tokens", "t.npy"), "2 seeds for 3 images"),
        (("--class", 1, "--precision", "int8", "--tokens", "t.npy"), "has no onnxruntime int8 engine (built: onnxrun"),
        (("--class", 1, "--target", "abacus", "--tokens", "t.npy"), "unknown target 'abacus'"),
        (("--class", 1, "--tokens", "missing/t.npy"), "cannot write missing/t.npy: No such file or directory"),
        (("--class", 1, "--greedy", "--temperature", 1.0, "--tokens", "t.npy"), "--greedy is temperature 0"),
    ],
)
def test_run_says_what_is_wrong_and_writes_nothing(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fail("run", bundle.absolute(), *arguments)
    assert list(tmp_path.iterdir()) == []


def test_tokens_only_bundle_refuses_to_give_images(grouped_bundle: Path, tmp_path: Path) -> None:
    assert "export with --tokenizer" in fail("run", grouped_bundle, "--class", 0, "--output", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_schedule_dumps_json_and_pictures(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("s.json", "s.png", "s.gif")]
    text = succeed("schedule", "zipar:16", "--grid", "24x24", "--json", files[0], "--plot", files[1], "--gif", files[2])
    assert "400 steps for 576 cells" in text
    dumped = json.loads(files[0].read_text())
    assert dumped["grid"] == [24, 24]
    assert len(dumped["steps"]) == 400
    assert sorted(dumped["order"]) == list(range(576))
    assert [cell for step in dumped["steps"] for cell in step["targets"]] == dumped["order"]
    assert dumped["steps"][1]["inputs"][0]["cell"] == 0
    with Image.open(files[1]) as picture, Image.open(files[2]) as animation:
        assert picture.format == "PNG"
        assert len(set(picture.convert("RGB").getdata())) > 100
        assert animation.n_frames == 120


def test_schedule_dumps_json_to_standard_output() -> None:
    assert json.loads(succeed("schedule", "ntp", "--grid", "4x6", "--json", "-"))["grid"] == [4, 6]
    assert "an image takes at least these steps" in succeed("schedule", "zipar:adaptive=2", "--grid", "4x6")
    assert "of up to 7 tokens" in succeed("schedule", "zipar:2,jacobi=7", "--grid", "4x6")


def test_schedule_shows_rows_that_end_in_a_token() -> None:
    text = succeed("schedule", "zipar:16", "--grid", "48x48", "--row-ends")
    assert "zipar:16 on 48x48: 753 steps for 2304 cells" in text
    text = succeed("schedule", "ntp", "--grid", "2x3", "--row-ends")
    assert "step 3: feeds cell 2, special 0; decides 3" in text


@pytest.mark.parametrize("grid", ["24", "0x4", "axb", "4x4x4"])
def test_schedule_refuses_a_grid_that_is_none(grid: str) -> None:
    assert "is not a grid: write rows x columns" in fail("schedule", "ntp", "--grid", grid)


def test_inspect_shows_what_the_manifest_holds(bundle: Path) -> None:
    text = succeed("inspect", bundle)
    for fact in ("8x8 tokens of 32", "zipar:4", "37.5%", "onnxruntime fp32 for cpu", "sha256"):
        assert fact in text
    facts = json.loads(succeed("inspect", bundle, "--json"))
    ntp = next(entry for entry in facts["schedules"] if entry["specification"] == "ntp")
    # two rows of 64 slots, keys and values of 2 layers of 4 heads of 16 floats
    assert ntp["cache_bytes"] == 2 * 64 * 2 * 2 * 4 * 16 * 4


def test_verify_passes_a_good_bundle_and_compares_with_its_checkpoint(bundle: Path, checkpoint: Path) -> None:
    text = succeed("verify", bundle, "--checkpoint", checkpoint, "--schedule", "zipar:3", "--max-steps", 10)
    assert "hashes: every file matches" in text
    assert "tensors equal" in text
    assert "torch module, zipar:3: 10 steps" in text


def test_verify_names_a_damaged_file(bundle_copy: Path) -> None:
    weights = bundle_copy / "graphs/fp32/weights/model.weights"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert "model.weights is damaged" in fail("verify", bundle_copy)


def test_build_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    assert "no bundle at" in fail("build", tmp_path / "none.bundle")


def test_export_refuses_a_missing_checkpoint_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "x.bundle"
    error = fail("export", "llamagen", "--variant", "B", "--checkpoint", tmp_path / "none.pt", "--output", output)
    assert "no checkpoint at" in error
    assert list(tmp_path.iterdir()) == []


def test_export_wants_one_of_variant_and_config(tmp_path: Path) -> None:
    both = ("--variant", "B", "--config", tmp_path / "c.json")
    error = fail("export", "llamagen", "--checkpoint", tmp_path / "c.pt", *both, "--output", tmp_path / "x.bundle")
    assert "one of --variant and --config" in error


def test_export_names_the_size_that_a_checkpoint_is_not(checkpoint: Path, tmp_path: Path) -> None:
    error = fail("export", "llamagen", "--variant", "B", "--checkpoint", checkpoint, "--output", tmp_path / "x.bundle")
    assert "missing layers.2." in error
    assert "check the dimensions" in error
    assert list(tmp_path.iterdir()) == []
