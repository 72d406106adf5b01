"""A PAR bundle beside the session's LlamaGen and ARPG ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import random_weights

from arforge.engines import onnxruntime
from arforge.export import par
from arforge.export.exporter import Job, export_bundle
from arforge.export.par import PARConfig


@pytest.fixture(scope="session")
def par_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8x8 bundle of 4 regions, without a tokenizer."""
    config = PARConfig(dim=40, n_layer=1, n_head=2, grid=(8, 8), vocab_size=32, num_classes=10, multiple_of=32)
    folder = tmp_path_factory.mktemp("par")
    torch.save(random_weights(config, seed=4, family=par.FAMILY), folder / "tiny.pt")
    path = folder / "par.bundle"
    export_bundle(Job(par.FAMILY, config, folder / "tiny.pt", None, path))
    onnxruntime.build(path)
    return path
