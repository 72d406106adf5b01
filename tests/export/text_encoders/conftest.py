from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_once import made_once
from tiny_text import random_t5, save_folder
from transformers import T5EncoderModel


@pytest.fixture(scope="session")
def t5() -> T5EncoderModel:
    return random_t5()


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory, t5: T5EncoderModel) -> Path:
    """The hub's layout of it. Tests must leave it as it is."""
    return made_once(tmp_path_factory, "t5", lambda path: save_folder(path, t5))


@pytest.fixture
def folder(tmp_path: Path, t5_folder: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(t5_folder, tmp_path / "t5"))
