"""arforge-run, the example service, and a C99 program that finds the installed package."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from arforge.cli import main
from arforge.run_command import command as run_command
from arforge.runner import Runner
from arforge.runner.images import Page, grid
from arforge.runner.preview import Partial, every

USAGE_ERROR, SCHEDULE_ERROR, BUNDLE_ERROR = 2, 103, 105


def call(*words: Any, status: int = 0) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def python(*words: Any) -> str:
    done = CliRunner().invoke(main, ["run", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--class", "0-3", "--seed", "5", "--schedule", "zipar:2", "--columns", 3),
        ("--class", "7,1", "--samples", 5, "--guidance", 1.5, "--temperature", 0.8, "--top-k", 9, "--batch", 2),
        ("--class=2", "--class=4", "--seed=3,18446744073709551615", "--top-p=0.9", "--zoom", 3),
        ("--class", 9, "--greedy"),
    ],
)
def test_arforge_run_writes_what_the_python_command_writes(
    release: Any, bundle: Path, tmp_path: Path, options: tuple[Any, ...]
) -> None:
    written = {}
    for who in ("ours", "theirs"):
        folder = tmp_path / who
        folder.mkdir()
        files = ("--output", folder / "x.png", "--tokens", folder / "x.npy", "--npz", folder / "x.npz")
        words = (bundle, *options, "--threads", 1, "--quiet", *files)
        said = call(release.program("arforge-run"), *words) if who == "ours" else python(*words)
        with Image.open(folder / "x.png") as picture, np.load(folder / "x.npz") as arrays:
            written[who] = (
                np.load(folder / "x.npy"),
                np.asarray(picture),
                arrays["arr_0"],
                said.partition(" steps")[0],
            )
        assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "x.npz", "x.png"]
    for ours, theirs in zip(written["ours"][:3], written["theirs"][:3], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert written["ours"][3] == written["theirs"][3]


def test_a_running_preview_is_pythons(release: Any, bundle: Path, tmp_path: Path) -> None:
    """At the end it is the page."""
    pages = {}
    for who in ("ours", "theirs"):
        place, tokens = tmp_path / f"{who}.png", tmp_path / f"{who}.npy"
        words = (
            bundle, "--class", "0-2", "--schedule", "zipar:2", "--batch", 2, "--columns", 3, "--quiet",
            "--preview", place, "--preview-every", 20, "--tokens", tokens,
        )  # fmt: skip
        _ = call(release.program("arforge-run"), *words) if who == "ours" else python(*words)
        with Image.open(place) as picture:
            pages[who] = np.asarray(picture)
    np.testing.assert_array_equal(pages["ours"], pages["theirs"])
    with Runner.open(bundle, threads=1) as runner:
        images = runner.generate([0, 1, 2], schedule="zipar:2").images
    assert images is not None
    np.testing.assert_array_equal(pages["ours"], grid(images, 3))


def test_pages_of_a_running_preview(release: Any, bundle: Path, tmp_path: Path) -> None:
    """On standard output they come one behind another."""
    words = (bundle, "--class", "0-2", "--schedule", "zipar:2", "--batch", 2, "--columns", 3, "--quiet")
    preview = ("--preview", "/dev/stdout", "--preview-every", 10, "--tokens", tmp_path / "x.npy")
    command = [str(word) for word in (release.program("arforge-run"), *words, *preview)]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    starts = [match.start() for match in re.finditer(b"\x89PNG", said)]
    pages = []
    for start, end in itertools.pairwise([*starts, len(said)]):
        with Image.open(io.BytesIO(said[start:end])) as picture:
            pages.append(np.asarray(picture))
    with Runner.open(bundle, threads=1) as runner:
        images = runner.generate([0, 1, 2], schedule="zipar:2").images
        expected = []

        def show(partial: Partial) -> None:
            done = images[: partial.first] if images is not None else []
            expected.append([*done, *partial.pixels()])

        runner.generate([0, 1, 2], schedule="zipar:2", batch=2, preview=every(10, show))
    assert len(pages) == len(expected) + 1 == 5  # 10 and 20 of 28 steps, of 2 batches, and the end
    for page, some in zip(pages, expected, strict=False):
        holder = Page(3, 3)
        holder.add(np.stack(some))
        np.testing.assert_array_equal(page, holder.pixels)


def test_arforge_run_keeps_parts_and_paints_larger_images(release: Any, arpg_bundle: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[4:, 6:] = 255
    for name, content in (("image", pixels), ("mask", mask)):
        for suffix in ("png", "ppm" if content.ndim == 3 else "pgm"):
            Image.fromarray(content).save(tmp_path / f"{name}.{suffix}")
    tokens = []
    for who, (image, painted) in (("ours", ("image.ppm", "mask.pgm")), ("theirs", ("image.png", "mask.png"))):
        words = (
            arpg_bundle, "--class", 4, "--grid", "6x8", "--keep", tmp_path / image, "--mask", tmp_path / painted,
            "--tokens", tmp_path / f"{who}.npy", "--quiet",
        )  # fmt: skip
        _ = call(release.program("arforge-run"), *words) if who == "ours" else python(*words)
        tokens.append(np.load(tmp_path / f"{who}.npy"))
    np.testing.assert_array_equal(*tokens)


def test_arforge_run_shows_progress_and_timings(release: Any, bundle: Path, tmp_path: Path) -> None:
    timings = tmp_path / "timings.json"
    words = (bundle, "--class", 1, "--schedule", "zipar:2", "--output", tmp_path / "x.ppm", "--timings", timings)
    assert "28 of 28 steps" in call(release.program("arforge-run"), *words)
    found = json.loads(timings.read_text())
    assert (found["images"], found["steps"], found["passes"]) == (1, 28, [28])
    assert len(found["engine_seconds"]) == len(found["step_seconds"]) == 28
    assert all(0 < engine < step for engine, step in zip(found["engine_seconds"], found["step_seconds"], strict=True))
    assert sum(found["step_seconds"]) < found["seconds"]
    with Image.open(tmp_path / "x.ppm") as picture:
        assert picture.size == (16, 16)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--class", 1), USAGE_ERROR, "nothing to write"),
        (("--tokens", "x.npy"), USAGE_ERROR, "at least one --class"),
        (("--class", "3-1", "--tokens", "x.npy"), USAGE_ERROR, "'3-1' is not a rising range"),
        (("--class", "x", "--tokens", "x.npy"), USAGE_ERROR, "'x' is not a number"),
        (("--class", 1, "--greedy", "--temperature", 1, "--tokens", "x.npy"), USAGE_ERROR, "--greedy is temperature 0"),
        (
            ("--class", 1, "--target", "cuda", "--tokens", "x.npy"),
            USAGE_ERROR,
            "'cuda' is not one of onnxruntime, tensorrt",
        ),
        (
            ("--class", 1, "--target", "tensorrt", "--tokens", "x.npy"),
            112,
            "this arforge was built without tensorrt: build",
        ),
        (("--clas", 1), USAGE_ERROR, "no such option: --clas"),
        (("--class",), USAGE_ERROR, "--class needs a value"),
        (("--class", 1, "--keep", "x.ppm", "--tokens", "x.npy"), USAGE_ERROR, "give both"),
        (("--class", 1, "--schedule", "zippar:2", "--tokens", "x.npy"), SCHEDULE_ERROR, "unknown schedule 'zippar:2'"),
        (("--class", 1, "--tokens", "/nowhere/x.npy"), 1, "cannot write /nowhere/x.npy"),
    ],
)
def test_arforge_run_says_what_is_wrong(
    release: Any, bundle: Path, words: tuple[Any, ...], status: int, message: str
) -> None:
    assert message in call(release.program("arforge-run"), bundle, "--quiet", *words, status=status)


def test_arforge_run_without_a_bundle_and_with_help(release: Any, tmp_path: Path) -> None:
    program = release.program("arforge-run")
    words = (tmp_path / "none.bundle", "--class", 1, "--tokens", tmp_path / "x.npy")
    assert "no bundle at" in call(program, *words, status=BUNDLE_ERROR)
    said = call(program, "--help")
    options = {parameter.opts[0] for parameter in run_command.params if parameter.param_type_name == "option"}
    other = {
        "--help",
        "--prompt",
        "--prompts",
        "--negative",
        "--captions",
        "--truncate",  # words, which C++ does not read
    }
    assert options - other <= {word.strip(",") for word in said.split() if word.startswith("--")}


def test_a_c99_program_finds_the_package_and_runs(release: Any, grouped_bundle: Path) -> None:
    with Runner.open(grouped_bundle, threads=1) as runner:
        expected = runner.generate([1, 2]).tokens
    tokens, classes, cancelled, status = call(release.program("interface"), grouped_bundle).splitlines()
    assert list(map(int, tokens.split())) == expected.ravel().tolist()
    assert classes == "7 classes"
    assert cancelled == "4 of 24: cancelled after 2 of 24 steps"
    assert status == "5"
