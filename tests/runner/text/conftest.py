from __future__ import annotations

from pathlib import Path

import pytest
from made_once import made_once
from tiny_text import random_t5, save_folder, text_bundle
from transformers import T5EncoderModel

from arforge.export.exporter import export_text_encoder
from arforge.export.text_encoders.text_encoder import open_text_encoder
from arforge.runner.bundle import Bundle, Graph


@pytest.fixture(scope="session")
def t5() -> T5EncoderModel:
    return random_t5()


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory, t5: T5EncoderModel) -> Path:
    """The hub's layout of it. Tests must leave it as it is."""
    return made_once(tmp_path_factory, "t5", lambda path: save_folder(path, t5))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, t5_folder: Path) -> Bundle:
    """A bundle with that text encoder in fp32."""

    def make(path: Path) -> None:
        path.mkdir()
        export_text_encoder(open_text_encoder(t5_folder), path)

    root = made_once(tmp_path_factory, "texts.bundle", make)
    graph = Graph("text", "fp32", "graphs/fp32/text.onnx", "graphs/fp32/weights/text.weights")
    return text_bundle(root, [graph], "text/tokenizer.json")
