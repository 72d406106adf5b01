"""`arforge run --keep`: in- and outpainting from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from arforge.cli import main
from arforge.runner import Runner


def arforge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    pixels = np.zeros((8, 12), dtype=np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_kept_cells_are_the_encoded_images(arpg_bundle: Path, arpg_runner: Runner, image: Path, mask: Path) -> None:
    out = image.with_name("tokens.npy")
    options = ("--class", "2,5", "--keep", image, "--mask", mask, "--tokens", out, "--quiet")
    result = arforge("run", arpg_bundle, *options)
    assert result.exit_code == 0, result.output
    tokens = np.load(out).reshape(2, 4, 6)
    with Image.open(image) as picture:
        expected = arpg_runner.encode(np.asarray(picture)[None])[0]
    assert (tokens[:, :, :4] == expected[:, :4]).all()
    assert (tokens[0, :, 4:] != tokens[1, :, 4:]).any()
    assert "2 images, arpg:6: 2 steps" in result.output


def test_a_larger_grid_makes_a_larger_image(arpg_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "wide.png"
    result = arforge("run", arpg_bundle, "--class", 1, "--grid", "4x12", "--output", out, "--quiet")
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.size == (24, 8)


@pytest.mark.usefixtures("mask")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mask", "mask.png"), "--mask says what of an image to paint: name the image with --keep"),
        (("--keep", "mask.png"), "mask.png has no transparent part: name a mask that is white where to paint"),
        (("--keep", "image.png", "--mask", "mask.png", "--grid", "8x8"), "image.png is 8x12 pixels"),
        (("--grid", "2x2"), "a grid of 2x2 is out of range: use the model's 4x6, or a larger one"),
        (("--keep", "image.png", "--mask", "gone.png"), "cannot read image gone.png"),
        (
            ("--keep", "image.png", "--mask", "mask.png", "--schedule", "ntp"),
            "this model in random order",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    arpg_bundle: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(image.parent)
    result = arforge("run", arpg_bundle, "--class", 1, "--tokens", "t.npy", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (image.parent / "t.npy").exists()


@pytest.mark.usefixtures("mask")
@pytest.mark.parametrize("arguments", [("--keep", "image.png", "--mask", "mask.png"), ("--grid", "9x9")])
def test_raster_families_are_refused(
    bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(image.parent)
    result = arforge("run", bundle, "--class", 1, "--tokens", "t.npy", "--schedule", "ntp", *arguments)
    assert result.exit_code == 1
    assert "schedule 'ntp' decodes in an order of its own and cannot keep cells or go beyond the grid" in result.stderr
