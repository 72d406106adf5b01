"""A tiny model that reads ids of prompts, with random weights: positions in sequence, rows that end in a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from arforge.engines import onnxruntime
from arforge.export import exporter
from arforge.export.facts import image_tokenizer_facts
from arforge.export.families.llamagen import Dimensions, LlamaGen
from arforge.export.noise import drawing_step
from arforge.export.step_graph import trace_condition, trace_step
from arforge.export.trace import fake_module
from arforge.runner.bundle import IdsCondition, Manifest, ModelFacts, SamplerDefaults
from arforge.runner.bundle.names import TEXT_TOKENIZER
from arforge.runner.bundle.writer import file_facts, write_manifest
from arforge.runner.schedules.specification import compile_schedule

SCHEDULES = ("ntp", "zipar:4")
WORDS = ("<s>", "<pad>", "<image>", "<rows>", "<columns>", "draw", "a", "cat", "dog", "and", "on", "the", "mat", "now")
VOCABULARY = 48  # rows of the table of prompts; ids beyond WORDS have no word
BEGIN, PADDING, IMAGE, ROWS, COLUMNS = range(5)
SUFFIX = (WORDS.index("now"), IMAGE, ROWS, COLUMNS)
CONDITION = IdsCondition(
    slots=160, vocabulary=VOCABULARY, prefix=(BEGIN,), before="draw ", after="", stripped=True, suffix=SUFFIX, start=3,
    padding=PADDING, reserved=((IMAGE, COLUMNS),), negative=(BEGIN, 20, 21, IMAGE, ROWS, COLUMNS),
    unconditional="padded",
)  # fmt: skip


class TinyDimensions(Dimensions):
    @property
    def tokens(self) -> int:
        """Rows of the embedding table: image tokens, and the one that ends a row."""
        return self.vocab_size + 1


CONFIG = TinyDimensions(dim=64, n_layer=2, n_head=4, grid=(8, 8), vocab_size=32, multiple_of=32)
POSITIONS = CONDITION.slots + CONFIG.cells + CONFIG.grid[0]


def line_table(rows: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [rows, head_size / 2]: row p turns by p times each speed."""
    speeds = 1 / 10000 ** (torch.arange(0, head_size, 2) / head_size)
    angles = torch.outer(torch.arange(rows), speeds)
    return torch.cos(angles), torch.sin(angles)


class TinyDecoder(LlamaGen):
    def __init__(self, config: Dimensions) -> None:
        super().__init__(config)
        for name, table in zip(("cosine", "sine"), line_table(POSITIONS, config.head_size), strict=True):
            self.register_buffer(name, table, persistent=False)


class TinyVocabulary(nn.Module):
    """From ids [prompts, length] to rows of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, CONFIG.dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids)


def random_modules(seed: int = 9) -> tuple[TinyDecoder, TinyVocabulary]:
    """The decoder and the table of prompts, with weights whose greedy tokens vary from cell to cell."""
    random = torch.Generator().manual_seed(seed)
    decoder, vocabulary = TinyDecoder(CONFIG).eval(), TinyVocabulary().eval()
    for module in (decoder, vocabulary):
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            scale = 1.0 if "embedding" in name or "words" in name else 0.15
            parameter.data = 1 + 0.1 * values if "norm" in name else values * scale
    return decoder, vocabulary


def model_facts(**changes: Any) -> ModelFacts:
    facts: dict[str, Any] = {
        "family": "tiny-ids", "variant": None, "config": {}, "order": "raster", "grid": CONFIG.grid,
        "vocabulary": CONFIG.vocab_size, "dim": CONFIG.dim, "condition": CONDITION, "specials": (CONFIG.vocab_size,),
        "row_end": 0, "labels": None, "source_precision": "fp32", "stored_precision": "fp32",
        "queries": False, "positions": "sequence",
        "position_rows": POSITIONS, "layers": CONFIG.n_layer, "caches": CONFIG.caches, "kv_heads": CONFIG.kv_heads,
        "head_size": CONFIG.head_size, "parameters": 1,
    }  # fmt: skip
    return ModelFacts(**{**facts, **changes})


def tokenizer() -> Tokenizer:
    """Of words between blanks; what is no word is the token 47."""
    known = {word: index for index, word in enumerate(WORDS)} | {"<unknown>": VOCABULARY - 1}
    made = Tokenizer(models.WordLevel(known, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def save_bundle(root: Path, image_tokenizer: Path) -> Path:
    """Write the bundle and build it for ONNX Runtime."""
    root.mkdir()
    model, (decoder, vocabulary) = model_facts(), random_modules()
    weights = {**decoder.state_dict(), "cosine": decoder.cosine, "sine": decoder.sine}
    fake, mode = fake_module(lambda: TinyDecoder(CONFIG))
    with mode:
        full = trace_step(fake, model)
    steps = {"step": drawing_step(full, "uniform"), "step-logits": full}
    graphs = exporter.write_graphs(steps, "decoder.", "model.weights", weights.__getitem__, root)
    fake, mode = fake_module(TinyVocabulary)
    with mode:
        condition = trace_condition(fake, model)
    table = vocabulary.state_dict().__getitem__
    graphs += exporter.write_graphs({"condition": condition}, "", "condition.weights", table, root)
    images = exporter.open_image_tokenizer(image_tokenizer, CONFIG.vocab_size)
    graphs += exporter.export_image_tokenizer(images, root, CONFIG.cells)
    (root / TEXT_TOKENIZER).parent.mkdir()
    tokenizer().save(str(root / TEXT_TOKENIZER))
    schedules = [compile_schedule(text, CONFIG.grid, row_end=0) for text in SCHEDULES]
    manifest = Manifest(
        model=model,
        image_tokenizer=image_tokenizer_facts(images.kind, images.config, CONFIG.grid),
        text_tokenizer=TEXT_TOKENIZER,
        graphs=tuple(graphs),
        schedules=tuple(exporter.write_schedules(schedules, root)),
        files=file_facts(root),
        sampler=SamplerDefaults(guidance=3.0, temperature=1.0, top_k=0, top_p=1.0),
        engines=(),
        provenance={},
    )
    write_manifest(root, manifest)
    onnxruntime.build(root)
    return root


def prompt_of(length: int, seed: int = 0) -> np.ndarray:
    """A whole prompt of random words, int64 [length], of at least as many ids as the template has."""
    random = np.random.default_rng((length, seed))
    words = random.integers(COLUMNS + 1, VOCABULARY, length - 1 - len(SUFFIX))
    return np.array([BEGIN, *words, *SUFFIX], np.int64)
