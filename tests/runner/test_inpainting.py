"""In- and outpainting: kept tokens stay, the others are decided from them; files that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ARPG_CONFIG

from arforge.export.verify import load_module
from arforge.runner import RequestError, Runner, ScheduleError, compile_schedule, open_bundle
from arforge.runner.canvas import UNKNOWN, nothing_known
from arforge.runner.inpainting import kept_cells, known_tokens
from arforge.runner.schedules.random_order import random_order

GRID = ARPG_CONFIG.grid
SIZE = (2 * GRID[0], 2 * GRID[1])


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def noise(size: tuple[int, ...] = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*size, channels), dtype=np.uint8)


def left_half(size: tuple[int, ...] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=np.uint8)
    mask[:, : size[1] // 2] = 255
    return mask


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "image.png", noise())


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return save(tmp_path / "mask.png", left_half())


def test_a_mask_keeps_the_tokens_of_cells_that_it_does_not_touch(arpg_runner: Runner, image: Path, mask: Path) -> None:
    known = known_tokens(arpg_runner, image, mask)
    encoded = arpg_runner.encode(noise()[None])[0]
    assert (known[:, :3] == UNKNOWN).all()
    assert (known[:, 3:] == encoded[:, 3:]).all()
    assert len(np.unique(encoded)) > 3


def test_transparency_is_a_mask(arpg_runner: Runner, tmp_path: Path, image: Path, mask: Path) -> None:
    pixels = np.concatenate([noise(), 255 - left_half()[..., None]], axis=2)
    transparent = save(tmp_path / "transparent.png", pixels)
    assert (known_tokens(arpg_runner, transparent) == known_tokens(arpg_runner, image, mask)).all()
    # a mask that is named comes before the image's own transparency
    opposite = save(tmp_path / "opposite.png", 255 - left_half())
    assert (known_tokens(arpg_runner, transparent, opposite)[:, 3:] == UNKNOWN).all()


def test_one_painted_pixel_paints_its_cell() -> None:
    painted = np.zeros((4, 6), dtype=bool)
    painted[1, 2] = True
    assert kept_cells(painted, 2).tolist() == [[True, False, True], [True, True, True]]


def test_bytes_are_as_good_as_files_and_a_clear_mask_may_paint(
    arpg_runner: Runner, tmp_path: Path, image: Path, mask: Path
) -> None:
    expected = known_tokens(arpg_runner, image, mask)
    found = known_tokens(arpg_runner, image.read_bytes(), mask.read_bytes(), encode=arpg_runner.encode)
    np.testing.assert_array_equal(found, expected)
    opacity = np.dstack([np.zeros((*SIZE, 3), np.uint8), 255 - left_half()])
    clear = save(tmp_path / "clear.png", opacity)
    np.testing.assert_array_equal(known_tokens(arpg_runner, image, clear, clear_paints=True), expected)
    np.testing.assert_array_equal(known_tokens(arpg_runner, image, mask, clear_paints=True), expected)
    with pytest.raises(RequestError, match="of 3 bytes: it is none of PNG"):
        known_tokens(arpg_runner, b"GIF")


@pytest.mark.parametrize("schedule", ["arpg:1", "arpg:7", "arpg:24", "arpg:7,order=5,cfg=constant"])
def test_kept_cells_come_back_and_the_others_are_decided(arpg_runner: Runner, schedule: str) -> None:
    known = nothing_known(GRID)
    known[1:3, 2:] = np.arange(8).reshape(2, 4)
    result = arpg_runner.generate([1, 2], schedule=schedule, guidance=3.0, known=known)
    tokens = result.tokens.reshape(2, *GRID)
    assert (tokens[:, known != UNKNOWN] == known[known != UNKNOWN]).all()
    assert tokens.min() >= 0
    assert (tokens[0] != tokens[1]).any()
    assert result.images is not None
    assert result.images.shape == (2, *SIZE, 3)


@torch.no_grad()
def test_decided_tokens_are_those_of_a_model_that_recomputes_everything(arpg_bundle: Path, arpg_runner: Runner) -> None:
    """One step: the class and the kept tokens see those before them in the random order, the queries see them all."""
    tokens_of = {3: 30, 4: 2, 9: 17, 20: 5}
    known = nothing_known(GRID)
    known.flat[list(tokens_of)] = list(tokens_of.values())
    kept = [cell for cell in random_order(24, 0) if cell in tokens_of]
    assert kept != sorted(kept)
    found = arpg_runner.generate([4], schedule="arpg:1,cfg=constant", guidance=2.0, greedy=True, known=known).tokens[0]
    cells = torch.tensor([cell for cell in range(ARPG_CONFIG.cells) if cell not in kept])
    conditions = (ARPG_CONFIG.first_class + 4, ARPG_CONFIG.null_class)
    tokens = torch.tensor([[condition, *(tokens_of[cell] for cell in kept)] for condition in conditions])
    positions = torch.tensor([0, *(1 + cell for cell in kept)]).expand(2, -1)
    causal, everything = torch.ones(5, 5, dtype=torch.bool).tril(), torch.ones(len(cells), 5, dtype=torch.bool)
    module = load_module(open_bundle(arpg_bundle))
    logits, _ = module(tokens, positions, causal, (1 + cells).expand(2, -1), everything)
    conditional, unconditional = logits
    expected = (unconditional + 2.0 * (conditional - unconditional)).argmax(-1)
    assert found[cells].tolist() == expected.tolist()


def test_steps_shrink_with_what_is_left_to_decide() -> None:
    for kept, steps in ((0, 12), (1, 12), (6, 9), (12, 6), (23, 1)):
        schedule = compile_schedule("arpg:12", GRID, tuple(range(kept)))
        assert len(schedule.steps) == steps
        assert schedule.steps[0].width == 1 + kept
        assert sorted(schedule.order) == list(range(kept, 24))
        assert schedule.steps[-1].guidance == 1.0
    assert compile_schedule("arpg:12", GRID, tuple(range(18))).steps[0].guidance > 18 / 24


def test_a_larger_grid_is_decoded_window_by_window(arpg_runner: Runner) -> None:
    result = arpg_runner.generate([1, 2, 3], schedule="arpg:8", known=nothing_known((6, 9)), batch=2)
    assert result.grid == (6, 9)
    assert result.tokens.shape == (3, 54)
    assert result.tokens.min() >= 0
    assert result.images is not None
    assert result.images.shape == (3, 12, 18, 3)
    windows = [8, 4, 4, 2]  # half of each later window is known, of the last three quarters
    assert result.steps == sum(windows)
    # the first window is an image of its own: uniform numbers go by the cell of the canvas
    alone = arpg_runner.generate([1], schedule="arpg:8", known=nothing_known((6, 9))).tokens
    assert (alone[0] == result.tokens[0]).all()


def test_an_image_is_outpainted_onto_a_larger_grid(arpg_runner: Runner, tmp_path: Path) -> None:
    pixels = np.zeros((16, 20, 4), dtype=np.uint8)
    pixels[4:12, 4:16] = np.concatenate([noise(), np.full((*SIZE, 1), 255, np.uint8)], axis=2)
    canvas = save(tmp_path / "canvas.png", pixels)
    known = known_tokens(arpg_runner, canvas, grid=(8, 10))
    assert (known != UNKNOWN).sum() == 24
    tokens = arpg_runner.generate([0], schedule="arpg:6", known=known).tokens.reshape(8, 10)
    assert (tokens[2:6, 2:8] == known[2:6, 2:8]).all()
    assert tokens.min() >= 0


def test_files_that_do_not_fit_are_refused(arpg_runner: Runner, tmp_path: Path, image: Path, mask: Path) -> None:
    small = save(tmp_path / "small.png", noise((8, 8)))
    small_mask = save(tmp_path / "small-mask.png", left_half((8, 8)))
    black = save(tmp_path / "black.png", np.zeros(SIZE, np.uint8))
    white = save(tmp_path / "white.png", np.full(SIZE, 255, np.uint8))
    text = tmp_path / "text.png"
    text.write_text("not an image")
    for given, wanted in (
        ((small, mask), r"small.png is 8x8 pixels .height x width., a grid of 4x6 makes 8x12: resize it"),
        ((image, small_mask), r"mask .*small-mask.png is 8x8 pixels .height x width., the image 8x12"),
        ((image, black), "black.png leaves nothing to paint"),
        ((image, white), "white.png keeps no token whole"),
        ((image, None), "image.png has no transparent part: name a mask"),
        ((text, mask), "cannot read image .*text.png"),
        ((image, text), "cannot read image .*text.png"),
        ((tmp_path / "missing.png", mask), "cannot read image .*missing.png"),
        ((image, mask, (8, 10)), "a grid of 8x10 makes 16x20"),
    ):
        with pytest.raises(RequestError, match=wanted):
            known_tokens(arpg_runner, *given)


def test_an_image_lying_on_its_side_is_kept_upright(arpg_runner: Runner, tmp_path: Path, mask: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(noise()).copy()).save(tmp_path / "turned.png", exif=exif)
    upright = save(tmp_path / "upright.png", noise())
    found = known_tokens(arpg_runner, tmp_path / "turned.png", mask)
    assert (found == known_tokens(arpg_runner, upright, mask)).all()


def test_a_mask_with_transparent_pixels_is_refused(arpg_runner: Runner, tmp_path: Path, image: Path) -> None:
    unclear = save(tmp_path / "unclear.png", np.dstack([noise(), left_half()[..., None]]))
    with pytest.raises(RequestError, match=r"mask .*unclear.png has transparent pixels: make it opaque"):
        known_tokens(arpg_runner, image, unclear)


def test_a_mask_of_sixteen_bits_is_light_where_it_is(arpg_runner: Runner, tmp_path: Path, image: Path) -> None:
    deep = np.where(left_half() > 0, 40000, 20000).astype(np.uint16)  # above and below half
    known = known_tokens(arpg_runner, image, save(tmp_path / "deep.png", deep))
    assert (known[:, :3] == UNKNOWN).all()
    assert (known[:, 3:] != UNKNOWN).all()


@pytest.mark.parametrize("known", [np.where(np.arange(64).reshape(8, 8) < 5, 1, UNKNOWN), nothing_known((9, 8))])
def test_raster_schedules_keep_nothing(runner: Runner, known: np.ndarray) -> None:
    with pytest.raises(ScheduleError, match="schedule 'zipar:4' decodes in an order of its own and cannot keep cells"):
        runner.generate([0], schedule="zipar:4", known=known)


def test_images_that_are_no_images_are_not_encoded(arpg_runner: Runner, grouped_runner: Runner) -> None:
    for images, wanted in (
        (np.zeros((1, 8, 12, 3), np.float32), "images are float32"),
        (np.zeros((8, 12, 3), np.uint8), "use uint8 .images, height, width, 3."),
        (np.zeros((0, 8, 12, 3), np.uint8), "use uint8"),
        (np.zeros((1, 8, 11, 3), np.uint8), "images of 8x11 are not a whole number of 2-pixel tokens"),
    ):
        with pytest.raises(RequestError, match=wanted):
            arpg_runner.encode(images)
    with pytest.raises(RequestError, match="no image tokenizer"):
        grouped_runner.encode(np.zeros((1, 8, 12, 3), np.uint8))
    with pytest.raises(RequestError, match="no image tokenizer"):
        known_tokens(grouped_runner, Path("any.png"))
