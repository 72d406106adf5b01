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
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from arforge.export.config import read_config
from arforge.export.families import FAMILIES
from arforge.export.image_tokenizers.vq import VQConfig, VQModel
from arforge.export.text_encoders import t5
from arforge.export.text_encoders.t5_config import T5Config

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
export llamagen-t2i --config text.json --checkpoint text.pt --text-encoder t5 --output x.bundle
run x.bundle --prompts prompts.txt --schedule zipar:2 --tokens x.npy
profile x.bundle --prompts prompts.txt --max-steps 2
verify x.bundle --checkpoint text.pt
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
    write_text_inputs(folder)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"real/{index}.png")


def write_text_inputs(folder: Path) -> None:
    """A checkpoint of a model of prompts, a text encoder in the hub's layout, and prompts."""
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    facts = {**FACTS, "caption_dim": sizes["d_model"]}
    del facts["num_classes"]
    (folder / "text.json").write_text(json.dumps(facts), "utf-8")
    kind = FAMILIES["llamagen-t2i"]
    shapes = kind.checkpoint_shapes(read_config(folder / "text.json", kind))
    weights = {name: 0.2 * torch.randn(shape) + float("norm" in name) for name, shape in shapes.items()}
    torch.save({"model": weights}, folder / "text.pt")
    (folder / "t5").mkdir()
    (folder / "t5/config.json").write_text(
        json.dumps({**sizes, "model_type": "t5", "feed_forward_proj": "gated-gelu"}), "utf-8"
    )
    encoder = t5.checkpoint_shapes(T5Config.read(folder / "t5/config.json"))
    save_file({name: 0.2 * torch.randn(shape) for name, shape in encoder.items()}, folder / "t5/model.safetensors")
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "heart": 5}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.save(str(folder / "t5/tokenizer.json"))
    (folder / "prompts.txt").write_text("A red heart\na blue <b>heart</b>\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
