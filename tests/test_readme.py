"""The README's own commands, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


pytestmark = pytest.mark.usefixtures("programs_trace_once")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout to the README's commands, whose outputs go elsewhere."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "out").mkdir()
    return folder


def run(command: list[str], folder: Path) -> str:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": search}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_shell_block_runs_line_by_line(workplace: Path) -> None:
    (block,) = blocks("sh")
    lines = block.strip().splitlines()
    shown = {"export", "build", "inspect", "run", "schedule", "profile", "calibrate", "verify"}
    assert {line.split()[1] for line in lines} == shown
    output = "".join(run(shlex.split(line), workplace) for line in lines)
    assert "zipar:4: 40 steps" in output
    assert "400 steps for 576 cells" in output
    tokens = np.load(workplace / "out/tokens.npy")
    assert tokens.shape == (10, 64)
    with Image.open(workplace / "out/images.png") as picture:
        assert picture.size[0] > 100
    with Image.open(workplace / "out/sneaker.png") as shoe, Image.open(workplace / "out/inpainted.png") as inpainted:
        kept, painted = np.asarray(shoe)[:8], np.asarray(inpainted)
        # the upper rows are decoded from the same tokens, but for what the decoder sees of the lower ones
        assert np.abs(painted[:8, :32].astype(int) - kept).mean() < 12
        assert painted[16:32, :32].std() > 10


def test_python_block_runs_on_the_bundle_of_the_shell_block(workplace: Path) -> None:
    assert (workplace / "out/fashion.bundle").is_dir(), "the shell block runs first"
    (block,) = blocks("python")
    check = "\nassert result.images.shape == (2, 32, 32, 3) and result.tokens.shape == (2, 64)"
    run([sys.executable, "-c", block + check], workplace)


def test_make_demo_leaves_a_table_and_a_picture_a_schedule(tmp_path: Path) -> None:
    table = run(["make", "-C", str(ROOT), "demo", f"OUT={tmp_path}"], ROOT)
    expected = (("ntp", 64), ("zipar:4", 40), ("zipar:2", 28), ("par:4", 19), ("arpg:16", 16))
    for schedule, steps in expected:
        row = re.search(rf"^(?:llamagen|par|arpg) +{schedule} +(\d+) +([\d.]+) +([\d.]+) ", table, flags=re.MULTILINE)
        assert row is not None, table
        assert int(row[1]) == steps
        with Image.open(tmp_path / f"fashion-{schedule.replace(':', '-')}.png") as picture:
            pixels = np.asarray(picture)
        assert pixels.std() > 20  # not a blank page
    assert (tmp_path / "fashion-inpainting.png").exists()
    prompted = (("emoji", "ntp", 100), ("emoji", "zipar:6", 68), ("emoji", "zipar:3", 44))
    ended = (("emoji-emu3", "ntp", 100), ("emoji-emu3", "zipar:6", 55), ("emoji-emu3", "zipar:3", 28))
    for model, schedule, steps in (*prompted, *ended):
        row = re.search(rf"^{model} +{schedule} +(\d+) +([\d.]+) +([\d.]+) ms ", table, flags=re.MULTILINE)
        assert row is not None, table
        assert int(row[1]) == steps
        with Image.open(tmp_path / f"{model}-{schedule.replace(':', '-')}.png") as picture:
            assert np.asarray(picture).std() > 20


def test_commands_of_the_introduction_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^    make (\w+)", README, flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    assert "pytest" in run(["make", "-C", str(ROOT), "--dry-run", "test"], ROOT)


def test_the_format_page_names_every_field_of_the_schema() -> None:
    schema = (ROOT / "runner/bundle/manifest.schema.json").read_text("utf-8")
    page = (ROOT / "docs/format.md").read_text("utf-8")
    names = set(re.findall(r'"(\w+)": \{(?!"type": "(?:object|array)", "required")', schema)) | set(
        re.findall(r'"const": "(\w+)"', schema)
    )
    parts = {"properties", "definitions", "items", "additionalProperties", "count", "id", "name", "pair", "ids"}
    missing = {name for name in names - parts if f"`{name}`" not in page and f'`"{name}"`' not in page}
    assert len(names) > 50
    assert missing <= {"path", "file", "graph", "schedule", "engine"}, missing


def test_pages_link_to_what_is_there() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        text = re.sub(
            r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL
        )  # of which C++ has functions like links
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_stays_short() -> None:
    assert README.count("\n") < 160
