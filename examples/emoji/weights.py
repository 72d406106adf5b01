"""The demo's checkpoints: where they lie, and how they are written and read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import captions
from model import PLACES, Generator
from safetensors.torch import load_file, save_file
from t5 import T5Config
from tokenizers import Tokenizer as TextTokenizer
from torch import Tensor, nn

from arforge.export.families.llamagen import LlamaGenConfig
from arforge.export.image_tokenizers.vq import VQConfig, VQModel

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TOKENIZER = "tokenizer.safetensors"
MODEL = "llamagen-t2i.safetensors"
CONFIG = "llamagen-t2i.json"
PATCHES = "patches.safetensors"
TEXT_ENCODER = "text-encoder"


def load_tokenizer(checkpoints: Path) -> VQModel:
    weights = load_file(checkpoints / TOKENIZER)
    model = VQModel(VQConfig.infer({name: tensor.shape for name, tensor in weights.items()}))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def load_patches(checkpoints: Path) -> Tensor:
    """What the tokens stand for, float [codebook size, values]."""
    return load_file(checkpoints / PATCHES)["patches"].float()


def text_tokenizer(checkpoints: Path, texts: Iterable[str] = ()) -> TextTokenizer:
    """The one that is there, or one made from these texts."""
    file = checkpoints / TEXT_ENCODER / "tokenizer.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        captions.train_tokenizer(texts).save(str(file))
    return TextTokenizer.from_file(str(file))


def save_generator(model: Generator, checkpoints: Path) -> None:
    folder = checkpoints / TEXT_ENCODER
    folder.mkdir(exist_ok=True)
    save(model.text, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.text.config.as_json(), indent=1) + "\n")
    save(model.image, checkpoints / MODEL)
    config = {name: value for name, value in asdict(model.image.config).items() if value is not None}
    del config["num_classes"]
    config |= {"caption_dim": model.text.config.d_model, "caption_slots": PLACES}
    (checkpoints / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load_generator(checkpoints: Path) -> Generator:
    """The weights that `save_generator` kept."""
    kept = json.loads((checkpoints / TEXT_ENCODER / "config.json").read_text())
    text = T5Config(**{field.name: kept[field.name] for field in fields(T5Config)})
    kept = json.loads((checkpoints / CONFIG).read_text())
    shape = {name: value for name, value in kept.items() if not name.startswith("caption_")}
    image = LlamaGenConfig(**shape | {"grid": tuple(kept["grid"]), "num_classes": 0})
    model = Generator(text, image)
    model.text.load_state_dict(wide(load_file(checkpoints / TEXT_ENCODER / "model.safetensors")))
    model.image.load_state_dict(wide(load_file(checkpoints / MODEL)))
    return model


def wide(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in weights.items()}


def save(model: nn.Module, path: Path) -> None:
    """Weights as float16: half the size; what is exported of them computes in float32."""
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
