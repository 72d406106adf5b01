"""A tiny random model through every command, in the folder `smoke`: python .ci/smoke.py [PACKAGE==VERSION …].

The packages named must be installed in just that version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from packaging.version import Version
from PIL import Image

from arforge.export.config import read_config
from arforge.export.families import FAMILIES
from arforge.export.image_tokenizers.vq import VQConfig, VQModel

FACTS = {"dim": 64, "n_layer": 2, "n_head": 2, "grid": [4, 4], "vocab_size": 32, "num_classes": 5, "multiple_of": 32}
TOKENIZER = VQConfig(codebook_size=32, codebook_width=8, channels=32, multipliers=(1, 2), latent_channels=64)
COMMANDS = """
export llamagen --config tiny.json --checkpoint tiny.pt --tokenizer vq.pt --output t.bundle
run t.bundle --class 0-4 --output images.png --npz images.npz --tokens tokens.npy
build t.bundle --precision int8 --measure-widths
run t.bundle --class 0-4 --precision int8 --output int8.png
calibrate t.bundle --samples 2 --check 2
build t.bundle --precision int8 --quantization static
inspect t.bundle
inspect t.bundle --json
verify t.bundle --checkpoint tiny.pt
schedule zipar:2 --grid 4x4 --json s.json --plot s.png --gif s.gif
profile t.bundle --max-steps 2 --layers --json p.json --html p.html
evaluate t.bundle --reference real --samples 4 --json q.json --plot q.png
"""


def main(packages: list[str]) -> None:
    for package in packages:
        name, _, wanted = package.partition("==")
        if Version(version(name)) != Version(wanted):
            raise SystemExit(f"{name} {version(name)} is installed, not {wanted}")
    folder = Path("smoke")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "real").mkdir(parents=True)
    write_inputs(folder)
    for line in COMMANDS.strip().splitlines():
        print("arforge", line, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "arforge", *line.split()], cwd=folder, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)


def write_inputs(folder: Path) -> None:
    """A checkpoint with its configuration, an image tokenizer, and eight images."""
    torch.manual_seed(0)
    (folder / "tiny.json").write_text(json.dumps(FACTS), "utf-8")
    kind = FAMILIES["llamagen"]
    shapes = kind.checkpoint_shapes(read_config(folder / "tiny.json", kind))
    weights = {name: 0.2 * torch.randn(shape) + float("norm" in name) for name, shape in shapes.items()}
    torch.save({"model": weights}, folder / "tiny.pt")
    torch.save({"model": VQModel(TOKENIZER).state_dict()}, folder / "vq.pt")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"real/{index}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
