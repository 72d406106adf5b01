"""A tiny text encoder of the T5 kind with random weights, its tokenizer, and the folder that the hub would give."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import torch
import transformers
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from arforge.runner.bundle import Bundle, FeaturesCondition, Graph, ModelFacts, SamplerDefaults

WIDTH, SLOTS = 32, 24
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 . , : ; - ' ( ) < > / & ! ? é ï"
CORPUS = [LETTERS, "a cat on the mat", "the dog and a cat in the house", "two cats, a dog; and a mat!", "a naïve café"]
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 224,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


def save_sentence_model(folder: Path) -> Path:
    """A `spiece.model` as T5's: pieces of words, no sign at the start, `</s>` at the end."""
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 5), model_writer=file, vocab_size=100, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    return folder / "spiece.model"


def save_tokenizer(folder: Path) -> Path:
    """The `tokenizer.json` that transformers makes of it, with a hundred special tokens more, as the hub's has them."""
    with TemporaryDirectory() as other:
        save_sentence_model(Path(other))
        T5TokenizerFast.from_pretrained(other).save_pretrained(folder)
    return folder / "tokenizer.json"


def random_t5(**changes: Any) -> T5EncoderModel:
    torch.manual_seed(7)
    model = T5EncoderModel(T5Config(**{**DIMENSIONS, **changes})).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1 if "norm" in name else 0.15)
    return model


def save_folder(folder: Path, model: T5EncoderModel) -> Path:
    """As `save_pretrained` writes it, with the tokenizer."""
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    """Set fields of `config.json`; None removes one."""
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def features_model(slots: int = SLOTS, width: int = WIDTH) -> ModelFacts:
    """Facts of a decoder that reads features; nothing here depends on the others."""
    return ModelFacts(
        family="tiny", variant=None, config={}, order="raster", grid=(4, 4), vocabulary=32, dim=64,
        condition=FeaturesCondition(slots, width, "clean"), specials=(), row_end=None, labels=None,
        source_precision="fp32", stored_precision="fp32",
        queries=False, positions="grid", position_rows=17, layers=1, caches=1, kv_heads=2, head_size=8, parameters=1,
    )  # fmt: skip


def text_bundle(root: Path, graphs: list[Graph], tokenizer: str | None, model: ModelFacts | None = None) -> Bundle:
    """What the manifest of a bundle with a text encoder says, without the parts that text does not need."""
    sampler = SamplerDefaults(guidance=7.5, temperature=1.0, top_k=0, top_p=1.0)
    return Bundle(
        model=model or features_model(), image_tokenizer=None, text_tokenizer=tokenizer, graphs=tuple(graphs), files={},
        schedules=(), sampler=sampler, engines=(), provenance={}, root=root,
    )  # fmt: skip
